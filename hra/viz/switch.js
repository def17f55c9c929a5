// The cost of a change of adapters. `base` is base.js, which hra.viz.static puts before
// this file.
const { make, ms, group, size, percent, frame, text, palette } = base;

// bytes to be moved; a written line is fetched and written back, see switch.py
function moved(s, p) {
  const d = s.sizes[s.at], n = d * d, lines = n / 16 * (1 - (1 - p) ** 16);
  return { sparse: 2 * (128 * lines + 12 * p * n), "low rank": 2 * (8 * n + 8 * s.r * d), copy: 12 * n };
}

function crossing(s, other) {
  let low = 0, high = 1;
  for (let i = 0; i < 50; i++) {
    const mid = (low + high) / 2, b = moved(s, mid);
    if (b.sparse < b[other]) low = mid; else high = mid;
  }
  return high;
}

function facts(s) {
  const out = {};
  for (const [k, b] of Object.entries(moved(s, s.thousandths / 1000))) out[k] = b / s.bandwidth / 1e6;
  return { ...out, "from copy": crossing(s, "copy"), "from low rank": crossing(s, "low rank") };
}

function render({ model, el }) {
  const fixed = Object.fromEntries(["recorded", "sizes", "measured"].map((k) => [k, model.get(k)]));
  const keys = ["at", "thousandths", "r", "bandwidth"], state = () => ({ ...fixed, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw }), families = palette.families;
  ui.slider("at", "Dimension d:", 0, fixed.sizes.length - 1, { show: (v) => group(fixed.sizes[v]) });
  ui.slider("thousandths", "Density:", 1, 200, { show: (v) => `${v / 10} %` });
  ui.slider("r", "Rank r:", 1, 256);
  ui.slider("bandwidth", "Memory bandwidth:", 1, 200, { show: (v) => `${v} GB/s` });
  let last = model.get("at");
  model.on("change:at", () => {  // the copy's bandwidth at the new dimension
    const at = model.get("at");
    if (at !== last) { last = at; ui.set({ bandwidth: fixed.measured[at] }); }
  });
  const svg = make("svg", { role: "img", style: "max-width:34rem" });
  ui.picture.append(svg);
  const colour = (name) => (/LoRA/.test(name) ? families["low rank"] : /copy/.test(name) ? families.full : families.sparse);

  function draw() {
    const s = state(), f = facts(s), b = moved(s, s.thousandths / 1000), d = s.sizes[s.at], row = Object.entries(s.recorded[String(d)]);
    const hollow = [["sparse", "sparse: restore, write", families.sparse], ["copy", "dense copy", families.full], ["low rank", "low rank: unmerge, merge", families["low rank"]]];
    const W = 460, L = 4, low = -2.5, high = 3.5, X = (t) => L + (W - 2 * L) * (Math.min(high, Math.max(low, Math.log10(t))) - low) / (high - low);
    const nodes = [];
    let y = 16;
    const head = (words) => { nodes.push(text(0, y, words, { "font-weight": 600 })); y += 20; };
    const bar = (words, t, attrs) => {
      nodes.push(text(0, y, `${words}: ${ms(t)}`), make("rect", { x: L, y: y + 5, height: 12, width: Math.max(2, X(t) - L), ...attrs }));
      y += 36;
    };
    head(`Measured, d = ${group(d)}, 1 %, r = 32`);
    for (const [k, t] of row) bar(k, t, { fill: colour(k) });
    head(`Memory alone, ${s.bandwidth} GB/s`);
    for (const [k, words, stroke] of hollow) bar(words, f[k], { fill: "none", stroke, "stroke-width": 2 });
    for (let e = -2; e <= 3; e++) {
      const x = X(10 ** e);
      nodes.push(make("line", { x1: x, x2: x, y1: 22, y2: y - 8, stroke: "currentColor", "stroke-opacity": 0.15 }), text(x, y + 6, String(10 ** e), { "text-anchor": "middle", "font-size": 13 }));
    }
    nodes.push(text(W / 2, y + 26, "one change (ms, log scale)", { "text-anchor": "middle" }));
    svg.setAttribute("viewBox", `0 0 ${W} ${y + 34}`);
    svg.replaceChildren(...nodes);
    const said = `At d = ${group(d)}, ${s.thousandths / 10} % and r = ${s.r}, a sparse change moves ${size(Math.round(b.sparse))}: ${ms(f.sparse)} at ${s.bandwidth} GB/s. ` +
      `A dense copy moves ${size(b.copy)} (${ms(f.copy)}), unmerge and merge of a low rank ${size(b["low rank"])} (${ms(f["low rank"])}). ` +
      `The sparse change stops moving less from ${percent(f["from copy"])} on against the copy, from ${percent(f["from low rank"])} on against the low rank.`;
    ui.say(said);
    svg.setAttribute("aria-label", `Bars on a logarithmic scale. Measured: ${row.map(([k, t]) => `${k} ${ms(t)}`).join(", ")}. ${said}`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
