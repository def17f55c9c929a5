// The bill calculator; the formulas come from hra.memory as text. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, size, frame } = base;
const PLAIN = "ordinary fine-tuning", LAYER = "one layer";
const PARTS = Object.keys(base.palette.parts), COLOURS = Object.values(base.palette.parts);
const value = (f, v) => Math.trunc(Function("min", ...Object.keys(v), `return ${f}`)(Math.min, ...Object.values(v)));
const total = (part, v) => Object.values(part).reduce((s, f) => s + value(f, v), 0);

// numbers of the five parts
function numbers(s, method, r) {
  const law = s.laws[method], model = s.models[s.model], own = {}, inputs = {};
  const sites = model ? Object.values(model.sites) : [[s.d_out, s.d_in, "x"]];
  let trained = 0, frozen = 0, kept = 0;
  for (const [d_out, d_in, input] of sites) {
    const v = { d_out, d_in, r, ...s.extra };
    trained += total(law.trained, v);
    frozen += total(law.frozen, v) + (!model && law.base ? d_out * d_in : 0);
    kept += total(law.once, v);
    for (const k in law.token) {
      const n = s.tokens * value(law.token[k], v);
      if (k === "x") inputs[input] = n; else kept += n;
    }
  }
  for (const k in inputs) kept += inputs[k];
  if (model) {
    trained *= model.layers; frozen *= model.layers; kept *= model.layers;
    if (method === PLAIN) trained = model.parameters; else frozen += model.parameters;
  }
  return { weights: frozen, trained, gradients: trained, moments: 2 * trained, activations: kept };
}

function bytes(s, method, r) {
  const n = numbers(s, method, r), p = s.plans[s.plan];
  const each = { weights: p.frozen, trained: p.trained, gradients: p.gradient, moments: p.moment, activations: p.activation };
  const out = {};
  for (const k of PARTS) out[k] = n[k] * each[k];
  return out;
}
const peak = (b) => PARTS.reduce((t, k) => t + b[k], 0);

// the smallest r whose bill is no smaller than ordinary fine-tuning's, or 0 if there is none below the layer's own rank
function crossing(s) {
  const law = JSON.stringify(s.laws[s.method]), sites = s.models[s.model] ? Object.values(s.models[s.model].sites) : [[s.d_out, s.d_in]];
  if (!/\br\b/.test(law)) return 0;
  const plain = peak(bytes(s, PLAIN, 1)), top = Math.min(...sites.map(([m, n]) => Math.min(m, n)));
  if (peak(bytes(s, s.method, top)) < plain) return 0;
  let low = 0, high = top;  // the bill grows with r
  while (high - low > 1) { const mid = (low + high) >> 1; if (peak(bytes(s, s.method, mid)) < plain) low = mid; else high = mid; }
  return high;
}

function facts(s) {
  const a = bytes(s, s.method, s.r), b = bytes(s, PLAIN, s.r);
  return { method: a, plain: b, peaks: [peak(a), peak(b)], crossing: crossing(s) };
}

function render({ model, el }) {
  const keys = ["model", "method", "plan", "d_out", "d_in", "r", "tokens"];
  const state = () => Object.fromEntries(["laws", "plans", "models", "extra", ...keys].map((k) => [k, model.get(k)]));
  const ui = frame({ model, el, keys, draw }), s0 = state(), W = 420;
  const powers = { show: group, to: (v) => 2 ** v, from: Math.log2 };
  ui.choices("model", "Model", [LAYER, ...Object.keys(s0.models)]);
  ui.choices("method", "Method", Object.keys(s0.laws).filter((m) => m !== PLAIN));
  ui.choices("plan", "Numbers in", Object.keys(s0.plans));
  const boxOut = ui.slider("d_out", "d_out:", 5, 14, powers), boxIn = ui.slider("d_in", "d_in:", 5, 14, powers);
  ui.slider("r", "Rank r:", 0, 9, powers);
  ui.slider("tokens", "Tokens in the batch:", 0, 16, powers);
  const svg = make("svg", { viewBox: `0 0 ${W} 128`, role: "img" });
  const legend = make("p", { style: "font-size:.9em;line-height:1.9" }, ...PARTS.flatMap((k, i) => [make("span", { "aria-hidden": "true",
    style: `display:inline-block;width:.8em;height:.8em;background:${COLOURS[i]};margin-right:.3em` }), make("span", { style: "margin-right:1em" }, k)]));
  const list = make("ul", { style: "font-size:.92em" });
  ui.picture.append(svg, legend, list);
  function draw() {
    const s = state(), f = facts(s), one = s.model === LAYER;
    boxOut.hidden = boxIn.hidden = !one;
    svg.replaceChildren();
    [[s.method, f.method], [PLAIN, f.plain]].forEach(([name, b], row) => {
      svg.append(make("text", { x: 0, y: 18 + 62 * row, fill: "currentColor", "font-size": 14 }, `${name}: ${size(peak(b))}`));
      let x = 0;
      PARTS.forEach((k, i) => {
        const w = W * b[k] / Math.max(...f.peaks);
        svg.append(make("rect", { x, y: 26 + 62 * row, width: w, height: 26, fill: COLOURS[i] }));
        x += w;
      });
    });
    const wide = one && s.r > Math.min(s.d_out, s.d_in) ? " (a rank above the layer's own)" : "";
    const where = one ? `on a ${group(s.d_out)} × ${group(s.d_in)} layer` : `on every linear layer of the blocks of ${s.model}`;
    const cross = f.crossing ? `It stops being cheaper at r = ${group(f.crossing)}.` : "It is cheaper at every rank, or its rank does not matter.";
    const said = `${s.method} with r = ${s.r}${wide} ${where}, ${group(s.tokens)} tokens, ${s.plan}: ${size(f.peaks[0])} held at once, ` +
      `${(100 * f.peaks[0] / f.peaks[1]).toPrecision(3)} % of ${PLAIN}. ${cross}`;
    ui.say(said);
    svg.setAttribute("aria-label", `${said} ` + PARTS.map((k) => `${k} ${size(f.method[k])}, against ${size(f.plain[k])}`).join("; "));
    const law = s.laws[s.method], v = { d_out: s.d_out, d_in: s.d_in, r: s.r, ...s.extra };
    const terms = [["trained", law.trained], ["frozen beside W0", law.frozen], ["kept a token", law.token], ["kept once", law.once]];
    const sum = (part) => Object.entries(part).map(([k, f]) => {
      const filled = f.replace(/\b[a-z]\w*/g, (w) => (w in v ? group(v[w]) : w)).replace(/\*/g, " × ");
      return `${k}: ${f.replace(/\*/g, " × ")}` + (one ? (f === String(value(f, v)) ? "" : ` = ${filled}${/[*(]/.test(f) ? ` = ${group(value(f, v))}` : ""}`) : "");
    }).join("; ");
    list.replaceChildren(...terms.filter(([, p]) => Object.keys(p).length).map(([k, p]) => make("li", {}, make("strong", {}, k), " ", sum(p))));
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
