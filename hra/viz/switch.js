// The cost of a change of adapters. `base` is base.js, which hra.viz.static puts before this file.
const { make, ms } = base;

function facts(s) {
  const d = s.sizes[s.at], entries = 2 * d * d * s.thousandths / 1000;
  return { sparse: entries * (8 + 4 + 128) / s.bandwidth / 1e6, dense: 8 * (2 * d * d + 2 * s.r * d) / s.bandwidth / 1e6 };
}

let serial = 0;
function render({ model, el }) {
  const id = `hra-switch-${++serial}`, keys = ["recorded", "sizes", "at", "thousandths", "r", "bandwidth"];
  const state = () => Object.fromEntries(keys.map((k) => [k, model.get(k)]));
  const grid = make("div", { style: "display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.4rem 1rem;max-width:44rem" });
  const sync = [];
  const slider = (name, label, min, max, show) => {
    const out = make("output"), e = make("input", { type: "range", id: `${id}-${name}`, min, max, step: 1, "data-lm-suppress-shortcuts": "true",
      style: "width:100%;accent-color:#2a78d6" });
    e.addEventListener("input", () => { model.set(name, +e.value); model.save_changes(); });
    grid.append(make("div", {}, make("label", { for: e.id }, label), " ", out, e));
    sync.push(() => { e.value = model.get(name); out.textContent = show(model.get(name)); e.setAttribute("aria-valuetext", out.textContent); });
  };
  slider("at", "Dimension d:", 0, model.get("sizes").length - 1, (v) => model.get("sizes")[v]);
  slider("thousandths", "Density:", 1, 100, (v) => `${v / 10} %`);
  slider("r", "Rank r:", 1, 256, String);
  slider("bandwidth", "Memory bandwidth:", 1, 100, (v) => `${v} GB/s`);
  const status = make("p", { role: "status", "aria-live": "polite" });
  const svg = make("svg", { role: "img", style: "width:100%;max-width:44rem;display:block" });
  function draw() {
    const s = state(), f = facts(s), d = s.sizes[s.at], row = Object.entries(s.recorded[String(d)]);
    sync.forEach((g) => g());
    const bars = [...row.map(([k, t]) => [`recorded, ${k}`, t, "#2a78d6"]), ["memory alone, sparse", f.sparse, "#d1661f"], ["memory alone, low rank", f.dense, "#d1661f"]];
    const low = -2.5, high = 3.5, W = 560;
    svg.setAttribute("viewBox", `0 0 ${W} ${bars.length * 40}`);
    svg.replaceChildren(...bars.flatMap(([k, t, fill], i) => [
      make("text", { x: 0, y: 40 * i + 14, fill: "currentColor", "font-size": 14 }, `${k}: ${ms(t)}`),
      make("rect", { x: 0, y: 40 * i + 19, height: 13, width: Math.max(2, W * (Math.min(high, Math.max(low, Math.log10(t))) - low) / (high - low)), fill })]));
    status.textContent = `At d = ${d}, a density of ${s.thousandths / 10} % and rank ${s.r}, memory of ${s.bandwidth} GB/s needs ${ms(f.sparse)} for a sparse ` +
      `change and ${ms(f.dense)} for a low-rank one: ${(f.dense / f.sparse).toPrecision(3)} to one. Recorded (1 %, r = 32): ` + row.map(([k, t]) => `${k} ${ms(t)}`).join(", ") + ".";
    svg.setAttribute("aria-label", `Bars on a logarithmic scale. ${status.textContent}`);
  }
  for (const k of keys.slice(2)) model.on(`change:${k}`, draw);
  el.append(grid, status, svg);
  draw();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
