// The rank slider; its sums run in the browser. `base` is base.js, which hra.viz.static
// puts before this file.
const { make, size, percent, frame, axes, pixels, palette } = base;

const share = (sigma, r) => {
  let kept = 0, all = 0;
  sigma.forEach((s, i) => { all += s * s; if (i < r) kept += s * s; });
  return all ? kept / all : 1;
};

function facts({ sigma, random, shape, r }) {
  return { energy: share(sigma, r), random: share(random, r), bytes: 4 * r * (shape[0] + shape[1]), dense: 4 * shape[0] * shape[1] };
}

// the sampled entries of the matrix kept at rank r, row by row
function entries({ sigma, picture, r }) {
  const bytes = (text) => Int8Array.from(atob(text), (c) => c.charCodeAt(0));
  const U = bytes(picture.left), V = bytes(picture.right), n = sigma.length;
  const rows = U.length / n, columns = V.length / n, out = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    let sum = 0;
    for (let k = 0; k < r; k++) sum += sigma[k] * U[i * n + k] * V[j * n + k];
    out[i * columns + j] = sum * picture.unit;
  }
  return { rows, columns, values: Array.from(out) };
}

function render({ model, el }) {
  const fixed = Object.fromEntries(["sigma", "random", "shape", "picture", "name"].map((k) => [k, model.get(k)]));
  const state = () => ({ ...fixed, r: model.get("r") }), { sigma, random } = fixed, n = sigma.length;
  const ui = frame({ model, el, keys: ["r"], draw });
  ui.slider("r", "Rank kept, r:", 0, n);

  const positive = sigma.concat(random).filter((s) => s > 0);
  const top = Math.max(...positive, 1e-30), low = Math.max(Math.min(...positive, top / 10), top / 1e4);
  const at = (i) => (n > 1 ? i + 1 : 1);
  const plot = axes({ x: [1, Math.max(2, n)], y: [low, top], logy: true, xlabel: "index i", ylabel: "singular value σᵢ (log scale)", H: 300,
    xticks: [[1, "1"], [n, String(n)]], yticks: [[low, low.toPrecision(2)], [top, top.toPrecision(2)]] });
  const points = (s, to) => s.slice(0, to).map((v, i) => [at(i), Math.max(v, low)]);
  const kept = make("path", { fill: "none", stroke: palette.families["low rank"], "stroke-width": 5, "stroke-linecap": "round" });
  const cut = make("line", { y1: plot.T, y2: plot.H - plot.B, stroke: palette.families.sparse, "stroke-width": 2, "stroke-dasharray": "5 3" });
  plot.svg.append(plot.path(points(random, n), { stroke: "currentColor", "stroke-dasharray": "6 4", "stroke-width": 1.8 }),
    plot.path(points(sigma, n), { stroke: palette.families["low rank"], "stroke-opacity": 0.5 }), kept, cut,
    make("path", { d: `M${plot.W - 200},${plot.T + 8}h26`, stroke: "currentColor", "stroke-dasharray": "6 4", "stroke-width": 1.8 }),
    plot.text(plot.W - 168, plot.T + 12, "random, same norm", { "font-size": 13 }));
  const side = make("div", { class: "hra-side" }, plot.svg);
  ui.picture.append(side);

  const full = fixed.picture.left ? entries({ ...state(), r: n }) : null;
  const canvas = () => make("canvas", { width: full.columns, height: full.rows, role: "img", class: "hra-pixels", style: "aspect-ratio:1" });
  const at_r = full && canvas(), whole = full && canvas(), under = [make("p"), make("p", {}, "all of it")];
  if (full) {
    side.append(make("div", {}, make("div", { class: "hra-side", style: "flex-wrap:nowrap;font-size:.9em" },
      make("div", { style: "flex-basis:0" }, at_r, under[0]), make("div", { style: "flex-basis:0" }, whole, under[1])),
    make("p", { style: "font-size:.9em" }, `${full.rows} × ${full.columns} of the entries of ${fixed.name}: blue above zero, orange below.`)));
    whole.setAttribute("aria-label", `Picture of ${full.rows} × ${full.columns} entries of ${fixed.name}, all ranks.`);
  }
  const most = full ? [...full.values].map(Math.abs).sort((a, b) => a - b)[Math.floor(0.98 * (full.values.length - 1))] || 1 : 1;

  function draw() {
    const s = state(), r = s.r, f = facts(s);
    kept.setAttribute("d", r ? plot.path(points(sigma, r), {}).getAttribute("d") + (r === 1 ? "h.1" : "") : "");
    const x = plot.X(Math.max(1, r ? at(r - 1) : 1));
    cut.setAttribute("x1", x); cut.setAttribute("x2", x);
    const said = `Rank ${r} of ${n} keeps ${percent(f.energy)} of the energy of ${s.name}; of a random matrix of the same shape and norm it keeps ` +
      `${percent(f.random)}. The two factors take ${size(f.bytes)} (fp32), the dense matrix ${size(f.dense)}.`;
    ui.say(said);
    plot.svg.setAttribute("aria-label", `Singular values on a logarithmic scale. ${said}`);
    if (!full) return;
    pixels(at_r, entries(s), most);
    under[0].textContent = `rank ${r}`;
    at_r.setAttribute("aria-label", `The same entries at rank ${r}.`);
  }
  if (full) pixels(whole, full, most);
  ui.start();
}

export default { render, facts, entries };  // so that a test holds them equal to the library
