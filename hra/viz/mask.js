// The mask explorer. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, percent } = base;

function facts(s) {
  const one = s.table[s.rule][s.at], two = s.table[s.other][s.at], total = s.shape[0] * s.shape[1], rules = Object.keys(s.table);
  return { K: one.K, density: one.K / total, structural: one.structural, mask_rank: one.mask_rank, rows: one.rows,
    shared: s.shared[s.at][rules.indexOf(s.rule)][rules.indexOf(s.other)],
    chance: one.K * two.K / total };
}

let serial = 0;
function render({ model, el }) {
  const id = `hra-mask-${++serial}`, keys = ["table", "shared", "densities", "shape", "rule", "other", "at"];
  const state = () => Object.fromEntries(keys.map((k) => [k, model.get(k)]));
  const set = (k, v) => { model.set(k, v); model.save_changes(); };
  const s0 = state(), rules = Object.keys(s0.table), side = 24, W = 480, H = 240, P = 200, sync = [];
  const grid = make("div", { style: "display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.4rem 1rem;max-width:40rem" });
  const choices = (name, label) => {
    const e = make("select", { id: `${id}-${name}`, style: "display:block;width:100%;font:inherit" },
      ...rules.map((r) => make("option", { value: r }, r)));
    e.addEventListener("change", () => set(name, e.value));
    grid.append(make("div", {}, make("label", { for: e.id }, label), e));
    sync.push(() => { e.value = model.get(name); });
  };
  choices("rule", "Mask:");
  choices("other", "Compare with:");
  const out = make("output"), range = make("input", { id: `${id}-at`, type: "range", min: 0, max: s0.densities.length - 1, step: 1,
    "data-lm-suppress-shortcuts": "true", style: "display:block;width:100%;accent-color:#2a78d6" });
  range.addEventListener("input", () => set("at", +range.value));
  grid.append(make("div", {}, make("label", { for: range.id }, "Density asked for:"), " ", out, range));
  const status = make("p", { role: "status", "aria-live": "polite" });
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", style: "width:100%;max-width:40rem;display:block" });
  const text = (x, y, t, more = {}) => make("text", { x, y, fill: "currentColor", "font-size": 13, ...more }, t);
  function draw() {
    const s = state(), f = facts(s), one = s.table[s.rule][s.at], X = 270, w = W - X - 8;
    sync.forEach((g) => g());
    range.value = s.at;
    out.textContent = percent(s.densities[s.at]);
    range.setAttribute("aria-valuetext", out.textContent);
    svg.replaceChildren(make("rect", { x: 10, y: 8, width: P, height: P, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }));
    [...one.cells].forEach((c, i) => {
      if (+c) svg.append(make("rect", { x: 10 + P * (i % side) / side, y: 8 + P * Math.floor(i / side) / side, width: P / side,
        height: P / side, fill: "#2a78d6", "fill-opacity": +c / 9 }));
    });
    const path = one.sigma.map((v, i) => `${(X + w * i / (one.sigma.length - 1)).toFixed(1)},${(8 + P * (1 - v)).toFixed(1)}`);
    svg.append(make("path", { d: `M${X},8V${8 + P}H${W - 8}`, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }),
      make("path", { d: "M" + path.join("L"), fill: "none", stroke: "#d1661f", "stroke-width": 3 }),
      text(10 + P / 2, H - 12, "inputs across, outputs down", { "text-anchor": "middle" }),
      text(X + w / 2, H - 12, `index i, 1 to ${Math.min(...s.shape)}`, { "text-anchor": "middle" }),
      text(X + w, 20, "σᵢ / σ₁, random values", { "text-anchor": "end" }), text(X - 5, 18, "1", { "text-anchor": "end" }),
      text(X - 5, 8 + P, "0", { "text-anchor": "end" }));
    const same = s.rule === s.other ? "" : ` It shares ${group(f.shared)} entries with ${s.other}; by chance it would be ${group(Math.round(f.chance))}.`;
    status.textContent = `${s.rule} picks ${group(f.K)} of ${s.shape[0]} × ${s.shape[1]} entries (${percent(f.density)}) in ${group(f.rows)} rows. ` +
      `A change on them has rank at most ${f.structural} of ${Math.min(...s.shape)}; the mask of zeros and ones has rank ${f.mask_rank}.${same}`;
    svg.setAttribute("aria-label", `Left, a coarse picture of the mask; right, singular values of random numbers on it. ${status.textContent}`);
  }
  for (const k of ["rule", "other", "at"]) model.on(`change:${k}`, draw);
  el.append(grid, status, svg);
  draw();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
