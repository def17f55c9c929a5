// The bill calculator; laws and steps come from hra.memory as text. Before it stand base.js (base) and law.js (laws).
const { make, group, size, percent, text, frame } = base, { PLAIN, LAYER, evaluate, valued, bill } = laws;
const PARTS = Object.keys(base.palette.parts), COLOURS = Object.values(base.palette.parts);

const peak = (b) => PARTS.reduce((t, k) => t + b[k], 0);
const partial = (s) => s.model !== LAYER && s.models[s.model].steps === null;

// the smallest r whose bill is no smaller than ordinary fine-tuning's, or 0 if there is none up to the layer's own rank
function crossing(s) {
  const sites = s.model === LAYER ? [[s.d_out, s.d_in]] : Object.values(s.models[s.model].sites);
  const plain = peak(bill(s, PLAIN)), top = Math.min(...sites.map(([m, n]) => Math.min(m, n)));
  const at = (r) => peak(bill({ ...s, r }, s.method));
  if (at(top) < plain) return 0;
  let low = 0, high = top;  // the bill grows with r
  while (high - low > 1) { const mid = (low + high) >> 1; if (at(mid) < plain) low = mid; else high = mid; }
  return high;
}

function facts(s) {
  const method = bill(s, s.method), plain = bill(s, PLAIN);
  const whole = method && !partial(s), ranked = whole && s.methods[s.method].knob === "r";
  return { method, plain, peaks: whole ? [peak(method), peak(plain)] : null, crossing: ranked ? crossing(s) : null };
}

function sentence(s, f) {
  const one = s.model === LAYER, { knob } = s.methods[s.method], images = !one && s.models[s.model].images;
  if (!f.method) return `${s.method} trains biases, and the linear layers of ${s.model} have none.`;
  const above = one && knob === "r" && s.r > Math.min(s.d_out, s.d_in) ? " (a rank above the layer's own)" : "";
  const set = knob === "r" ? ` with r = ${s.r}${above}` : knob ? ` with ${percent(s.density)} of the entries` : "";
  const where = one ? `on a ${group(s.d_out)} × ${group(s.d_in)} layer` : `on every linear layer of the blocks of ${s.model}`;
  const batch = images ? `${group(s.images)} image${s.images > 1 ? "s" : ""}` : `${group(s.tokens)} token${s.tokens > 1 ? "s" : ""}`;
  const said = `${s.method}${set} ${where}, ${batch}, ${s.plan}: `;
  if (!f.peaks) return `${said}${size(f.method.trained + f.method.gradients + f.method.moments)} for what trains, against ` +
    `${size(f.plain.trained + f.plain.gradients + f.plain.moments)} in ${PLAIN}. The activations are those of the linear layers only: there is no total.`;
  const less = f.peaks[0] < f.peaks[1];
  const cross = f.crossing === null ? (less ? "" : " It holds no less.") :
    f.crossing === 0 ? " It is cheaper at every rank." :
    f.crossing === 1 ? " It is cheaper at no rank." : ` It stops being cheaper at r = ${group(f.crossing)}.`;
  return `${said}${size(f.peaks[0])} held at once, ${percent(f.peaks[0] / f.peaks[1])} of ${PLAIN}.${cross}`;
}

function render({ model, el }) {
  const keys = ["model", "method", "plan", "d_out", "d_in", "r", "density", "tokens", "images"];
  const state = () => Object.fromEntries(["methods", "plans", "models", "steps", ...keys].map((k) => [k, model.get(k)]));
  const s0 = state(), W = 420, usual = (m) => s0.methods[m].values.r, ranks = {};
  let last = s0.method;
  model.on("change:method", () => {  // VeRA's usual rank is not LoRA's: each keeps its own
    const m = model.get("method"), [was, now] = [usual(last), usual(m)];
    if (was) ranks[was] = model.get("r");
    last = m;
    if (now && now !== was) model.set("r", ranks[now] || now);
  });
  const ui = frame({ model, el, keys, draw }), powers = { show: group, to: (v) => 2 ** v, from: Math.log2 };
  const shares = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1];
  ui.choices("model", "Model", [LAYER, ...Object.keys(s0.models)]);
  ui.choices("method", "Method", Object.keys(s0.methods).filter((m) => m !== PLAIN));
  ui.choices("plan", "Numbers in", Object.keys(s0.plans));
  const boxes = { d_out: ui.slider("d_out", "d_out:", 5, 14, powers), d_in: ui.slider("d_in", "d_in:", 5, 14, powers),
    r: ui.slider("r", "Rank r:", 0, 9, powers),
    density: ui.slider("density", "Density:", 0, shares.length - 1, { show: percent, to: (i) => shares[i], from: (v) => shares.reduce((near, p, i) => (Math.abs(p - v) < Math.abs(shares[near] - v) ? i : near), 0) }),
    tokens: ui.slider("tokens", "Tokens in the batch:", 0, 16, powers), images: ui.slider("images", "Images in the batch:", 0, 8, powers) };
  const svg = make("svg", { viewBox: `0 0 ${W} 128`, role: "img" });
  const legend = make("p", { style: "font-size:.9em;line-height:1.9" }, ...PARTS.flatMap((k, i) => [make("span", { style: "white-space:nowrap;margin-right:.9em" },
    make("span", { "aria-hidden": "true", style: `display:inline-block;width:.8em;height:.8em;background:${COLOURS[i]};margin-right:.3em` }), k), " "]));
  const list = make("ul", { style: "font-size:.92em" });
  ui.picture.append(svg, legend, list);
  function draw() {
    const s = state(), f = facts(s), one = s.model === LAYER, images = !one && s.models[s.model].images;
    const { knob, laws: own, values } = s.methods[s.method], rows = [[s.method, f.method], [PLAIN, f.plain]].filter(([, b]) => b);
    for (const k in boxes) boxes[k].hidden = k === "d_out" || k === "d_in" ? !one : k === "tokens" ? images : k === "images" ? !images : k !== knob;
    const widest = Math.max(...rows.map(([, b]) => peak(b)));
    svg.replaceChildren();
    rows.forEach(([name, b], row) => {
      svg.append(text(0, 18 + 62 * row, `${name}${f.peaks ? `: ${size(peak(b))}` : partial(s) ? ", activations of linear layers only" : ""}`));
      let x = 0;
      PARTS.forEach((k, i) => {
        const w = W * b[k] / widest;
        svg.append(make("rect", { x, y: 26 + 62 * row, width: w, height: 26, fill: COLOURS[i] }));
        x += w;
      });
    });
    const said = sentence(s, f);
    ui.say(said);
    svg.setAttribute("aria-label", f.method ? `${said} ` + PARTS.map((k) => `${k} ${size(f.method[k])}, against ${size(f.plain[k])}`).join("; ") : said);
    const law = own[1], v = valued(law, { ...values, ...(knob ? { [knob]: s[knob] } : {}), d_out: s.d_out, d_in: s.d_in });
    // a size of the form min(1, …) is a switch: what it turns off is not listed, what it turns on stands alone
    const switches = Object.keys(law.sizes).filter((k) => /^min\(1, /.test(law.sizes[k]));
    const on = (part) => Object.entries(part).filter(([k, t]) => !switches.includes(k) && !(switches.some((n) => t.includes(`${n}`)) && !evaluate(t, v)))
      .map(([k, t]) => [k, typeof t === "string" ? switches.reduce((u, n) => u.replace(`(1 - ${n})*`, "").replace(`${n}*`, ""), t) : t]);
    const times = (t) => t.replace(/\*/g, " × "), half = law.fp32 && s.plans[s.plan].activation < 4;
    const sum = (part) => on(part).map(([k, t]) => {
      const filled = times(String(t).replace(/\b[A-Za-z]\w*/g, (w) => (w in v ? group(v[w]) : w)));
      const told = !one || typeof t !== "string" || t === filled ? "" : ` = ${filled}${/[*(/]/.test(t) ? ` = ${group(evaluate(t, v))}` : ""}`;
      return `${k}: ${times(String(t))}${told}`;
    }).join("; ");
    const terms = [["trained", law.trained], ["frozen beside W0", law.frozen], ["frozen, 8 bytes each", law.int64],
      ["kept per token", law.token], ["kept once", { ...law.once, ...law.masters }], ["kept once, in half precision", half ? law.cast : {}], ["where", law.sizes]];
    const entries = terms.filter(([, p]) => Object.keys(p).length).map(([k, p]) => make("li", {}, make("strong", {}, k), " ", sum(p)));
    if (!one && f.method) entries.push(make("li", {}, make("strong", {}, "activations"), " ",
      Object.entries(f.method.kept).map(([k, b]) => `${k}: ${size(b)}`).join("; ") || "none"));
    list.replaceChildren(...(f.method ? entries : []));
  }
  ui.start();
}

export default { render, facts, sentence, evaluate };  // so that tests hold them equal to the library
