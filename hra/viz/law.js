// hra.memory in the page: the language of the laws, the walk through a model's operations, the bill.
// Held equal to hra/law.py, hra/memory/blocks.py and hra/memory/presets.py by tests.
const laws = (() => {
  const PLAIN = "ordinary fine-tuning", LAYER = "one layer";

  // the language of hra/law.py: names, whole numbers, + - * / // ( ) min max isqrt; nothing in it can run
  function evaluate(formula, values) {
    const tokens = formula.match(/[0-9]+|[A-Za-z_]\w*|\/\/|[-+*/(),]|[^ ]/g) || [];
    let at = 0, depth = 0;
    const wrong = () => { throw new Error(`no formula: ${formula.slice(0, 60)}`); };
    const take = (token) => (tokens[at] === token ? at++ : wrong());
    function bracket(several) {
      take("(");
      if (++depth > 50) wrong();
      const found = [sum()];
      if (several) do { take(","); found.push(sum()); } while (tokens[at] === ",");
      take(")");
      depth--;
      return found;
    }
    function atom() {
      const token = tokens[at];
      if (token === "(") return bracket()[0];
      at++;
      if (/^[0-9]{1,15}$/.test(token)) return +token;
      if (token === "min" || token === "max") return Math[token](...bracket(true));
      if (token === "isqrt") return Math.floor(Math.sqrt(Math.floor(bracket()[0])));
      return Object.hasOwn(values, token) && Number.isFinite(values[token]) ? values[token] : wrong();
    }
    function product() {
      let total = atom();
      while (["*", "/", "//"].includes(tokens[at])) {
        const sign = tokens[at++], factor = atom();
        if (sign !== "*" && factor === 0) wrong();
        total = sign === "*" ? total * factor : sign === "/" ? total / factor : Math.floor(total / factor);
      }
      return total;
    }
    function sum() {
      let total = product();
      while (tokens[at] === "+" || tokens[at] === "-") total += tokens[at++] === "+" ? product() : -product();
      return total;
    }
    if (formula.length > 1000) wrong();
    const total = sum();
    return at < tokens.length || !Number.isFinite(total) ? wrong() : Math.trunc(total);
  }

  // numbers for all names of a law, as Law.values
  function valued(law, given) {
    const v = { ...given };
    for (const [k, n] of Object.entries(law.sizes)) v[k] = typeof n === "string" ? evaluate(n, v) : n;
    return v;
  }

  // [activation, bytes] of a law, as hra.memory.bill.kept
  const kept = (law, v, tokens, bytes) => [
    ...Object.entries(law.token).map(([k, f]) => [k, evaluate(f, v) * tokens * bytes]),
    ...Object.entries(law.once).map(([k, f]) => [k, evaluate(f, v) * bytes]),
    ...Object.entries(law.masters).map(([k, f]) => [k, evaluate(f, v) * Math.max(4, bytes)]),
    ...(law.fp32 && bytes < 4 ? Object.entries(law.cast).map(([k, f]) => [`${k}, cast`, evaluate(f, v) * bytes]) : []),
  ].filter(([, n]) => n);

  // {what: bytes} of a whole model's operations, as hra.memory.blocks.Walk; the second block stands for those after it
  function walk(steps, layers, letters, rule, everything) {
    const found = {}, made = {}, graded = new Set(), noted = new Map();
    const note = (what, b) => { found[what] = (found[what] || 0) + b; };
    const keep = (what, t) => {  // what an adapter keeps is the next operation's, if that keeps it too
      if (noted.get(t) === "adapters") note("adapters", -made[t]); else if (noted.has(t)) return;
      noted.set(t, what);
      note(what, made[t]);
    };
    const run = (several) => several.forEach((step) => {
      const grad = step.reads.some((t) => graded.has(t)), law = step.rows && rule(step.module, grad);
      const own = Boolean(step.module) && (everything || Boolean(law));
      for (const [t, f] of Object.entries(step.makes)) {
        made[t] = evaluate(f, letters) * evaluate(step.bytes[t] || "bytes", letters);
        noted.delete(t);
      }
      if (law) for (const [k, n] of kept(...law, evaluate(step.rows, letters), letters.bytes)) {
        if (k === "x") keep("inputs of adapted layers", step.reads[0]);
        else if (k === "y") keep("adapters", Object.keys(step.makes)[0]);
        else note("adapters", n);
      }
      for (const [t, c] of Object.entries(step.keeps)) if (c === "" ? own || grad : c === "." ? own : graded.has(c)) keep(step.what, t);
      for (const t in step.makes) graded[own || grad ? "add" : "delete"](t);
    });
    run(steps.begin);
    let before = {};
    for (let block = 0; block < Math.min(layers, 2); block++) { before = { ...found }; run(steps.block); }
    for (const k in found) found[k] += Math.max(layers - 2, 0) * (found[k] - (before[k] || 0));
    run(steps.end);
    return found;
  }

  // {weights, trained, gradients, moments, activations} in bytes, kept: {what: bytes}; null where the method cannot be
  function bill(s, name) {
    const model = s.models[s.model], plain = name === PLAIN, { laws: own, values } = s.methods[name];
    const sites = model ? Object.entries(model.sites) : [["", [s.d_out, s.d_in, "x"]]];
    const given = { ...values, ...(s.methods[name].knob ? { [s.methods[name].knob]: s[s.methods[name].knob] } : {}) };
    const law = (site, grad) => {
      const [d_out, d_in] = model ? model.sites[site] : sites[0][1];
      return [own[+grad], valued(own[+grad], { ...given, d_out, d_in })];
    };
    if (model && own[1].bias && !model.bias) return null;
    const p = s.plans[s.plan], wide = own[1].fp32 && Math.max(4, p.activation);
    const layers = model ? model.layers : 1, one = (part) => {  // what all layers share is as large as the largest needs
      let total = 0;
      const shared = {};
      for (const [site] of sites) for (const [k, f] of Object.entries(own[1][part])) {
        const n = evaluate(f, law(site, true)[1]);
        if (own[1].shared.includes(k)) shared[k] = Math.max(shared[k] || 0, n); else total += layers * n;
      }
      return Object.values(shared).reduce((a, b) => a + b, total);
    };
    let trained = one("trained"), frozen = one("frozen"), activations = {}, base = own[1].base ? s.d_out * s.d_in : 0;
    if (model) base = model.buffers + (plain ? 0 : model.parameters);
    else if (own[1].bias) base += s.d_out;
    if (model && plain) trained = model.parameters;
    const tokens = tokensOf(s);
    if (model && model.steps !== null) {
      const B = model.images ? s.images : Math.max(1, tokens / model.context);
      const letters = { ...model.letters, B, t: tokens / B, T: tokens, bytes: p.activation };
      const rule = (site, grad) => (plain ? [own[1], { d_in: 1 }] : model.sites[site] ? law(site, grad) : null);
      activations = walk(s.steps[model.steps], layers, letters, rule, plain);
    } else {
      const inputs = {};
      for (const [site, [, , input]] of sites) for (const [k, n] of kept(...law(site, true), tokens, p.activation)) {
        if (k === "x") inputs[input] = n * layers;
        else activations.adapters = (activations.adapters || 0) + n * layers;
      }
      const x = Object.values(inputs).reduce((a, b) => a + b, 0);
      if (x) activations["inputs of adapted layers"] = x;
    }
    return { weights: (frozen + base) * p.frozen + 8 * one("int64"), trained: trained * (wide || p.trained),
      gradients: trained * (wide || p.gradient), moments: 2 * trained * (wide || p.moment),
      activations: Object.values(activations).reduce((a, b) => a + b, 0), kept: activations };
  }

  const tokensOf = (s) => (s.models[s.model] && s.models[s.model].images ? s.images * s.models[s.model].context : s.tokens);

  return { PLAIN, LAYER, evaluate, valued, bill };
})();
