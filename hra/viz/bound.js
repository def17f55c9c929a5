// The distance after a step on a subnet, and its bounds. `base` is base.js, which hra.viz.static puts before this file.
const { make, percent, frame, text, palette, svd } = base;
const ORDERS = ["rows first", "columns first", "refined", "random"], PARTS = 32;
const NAMES = { apart: "true distance", spectral: "spectral bound", frobenius: "Frobenius bound" };

const sum = (values) => values.reduce((t, v) => t + v, 0);
// the `count` largest, ties to the smaller index; sorted
const top = (score, count) => [...score.keys()].sort((i, j) => score[j] - score[i] || i - j).slice(0, count).sort((i, j) => i - j);

function block({ matrices, case: name, order, at }) {
  const one = matrices[name], [m, n] = one.shape, score = one.grad.map((g) => g * g);
  const a = Math.floor(at / PARTS * m), b = Math.floor(at / PARTS * n), range = (k) => [...Array(k).keys()];
  if (!(a && b)) return { rows: [], cols: [] };
  const sorted = (lines) => lines.slice().sort((i, j) => i - j);
  if (order === "random") return { rows: sorted(one.rows.slice(0, a)), cols: sorted(one.cols.slice(0, b)) };
  const rowSums = (cols) => range(m).map((i) => sum(cols.map((j) => score[i * n + j])));
  const colSums = (rows) => range(n).map((j) => sum(rows.map((i) => score[i * n + j])));
  const held = ({ rows, cols }) => sum(rows.map((i) => sum(cols.map((j) => score[i * n + j]))));
  const rowsFirst = () => { const rows = top(rowSums(range(n)), a); return { rows, cols: top(colSums(rows), b) }; };
  const colsFirst = () => { const cols = top(colSums(range(m)), b); return { rows: top(rowSums(cols), a), cols }; };
  if (order === "rows first") return rowsFirst();
  if (order === "columns first") return colsFirst();
  const both = { rows: top(rowSums(range(n)), a), cols: top(colSums(range(m)), b) };
  let best = [both, rowsFirst(), colsFirst()].reduce((x, y) => (held(y) > held(x) ? y : x));
  for (;;) {
    const cols = top(colSums(best.rows), b), next = { rows: top(rowSums(cols), a), cols };
    if (!(held(next) > held(best))) return best;
    best = next;
  }
}

function facts(s) {
  const one = s.matrices[s.case], [m, n] = one.shape, { rows, cols } = block(s), A = one.grad.slice();
  rows.forEach((i) => cols.forEach((j) => { A[i * n + j] = 0; }));
  const square = (values) => sum(values.map((v) => v * v)), energy = square(one.grad), left = square(A);
  let apart = 0, trace = 0;
  for (let j = 0; j < n; j++) {
    trace += one.second[j * n + j];
    for (let k = 0; k < n; k++) {
      let dot = 0;
      for (let i = 0; i < m; i++) dot += A[i * n + j] * A[i * n + k];
      apart += dot * one.second[j * n + k];
    }
  }
  const sigma = left ? svd({ rows: m, columns: n, values: A }).sigma[0] : 0;
  return { rows, cols, kept: 1 - left / energy, apart: apart / (energy * trace), spectral: sigma * sigma / energy, frobenius: left / energy };
}

function render({ model, el }) {
  const matrices = model.get("matrices"), keys = ["case", "order", "at"];
  const state = () => ({ matrices, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw }), purple = palette.families.subnet;
  if (Object.keys(matrices).length > 1) ui.choices("case", "Gradient:", Object.keys(matrices));
  ui.choices("order", "How the block is chosen:", ORDERS);
  ui.slider("at", "Share of the rows and of the columns, p:", 0, PARTS, { show: (k) => percent(k / PARTS) });
  const matrix = make("svg", { role: "img" }), bars = make("svg", { viewBox: "0 0 400 210", role: "img" });
  ui.picture.append(make("div", { class: "hra-side" }, make("div", { style: "flex-basis:12rem" }, matrix), make("div", { style: "flex-basis:18rem" }, bars)));

  function draw() {
    const s = state(), f = facts(s), none = facts({ ...s, at: 0 }), one = matrices[s.case], [m, n] = one.shape;
    const sizes = one.grad.map(Math.abs).sort((a, b) => a - b), most = sizes[Math.ceil(0.98 * (sizes.length - 1))] || 1;
    const u = 240 / Math.max(m, n), L = 20, T = 20, inRows = new Set(f.rows), inCols = new Set(f.cols), cells = [];
    one.grad.forEach((g, k) => {
      const i = Math.floor(k / n), j = k % n, kept = inRows.has(i) && inCols.has(j), strength = Math.min(1, Math.abs(g) / most);
      if (kept) cells.push(make("rect", { x: L + u * j, y: T + u * i, width: u, height: u, fill: purple, "fill-opacity": 0.25 + 0.75 * strength }));
      else if (strength > 0.02) cells.push(make("rect", { x: L + u * j, y: T + u * i, width: u, height: u, fill: "currentColor", "fill-opacity": 0.85 * strength }));
    });
    matrix.setAttribute("viewBox", `0 0 ${L + u * n + 4} ${T + u * m + 6}`);
    matrix.replaceChildren(...cells, make("rect", { x: L, y: T, width: u * n, height: u * m, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }),
      text(L + u * n / 2, 14, `${n} inputs`, { "text-anchor": "middle" }),
      text(0, 0, `${m} outputs`, { "text-anchor": "middle", transform: `translate(14 ${T + u * m / 2}) rotate(-90)` }));

    const W = 396, nodes = [];
    Object.keys(NAMES).forEach((k, i) => {
      const y = 22 + 58 * i;
      nodes.push(text(2, y, `${NAMES[k]}: ${percent(f[k])}`), make("rect", { x: 2, y: y + 8, width: W * Math.min(1, f[k]), height: 20, fill: purple, "fill-opacity": i ? 0.45 : 1 }),
        make("line", { x1: 2 + W * none[k], x2: 2 + W * none[k], y1: y + 4, y2: y + 32, stroke: "currentColor", "stroke-width": 2 }));
    });
    bars.replaceChildren(...nodes, text(2, 202, "stroke: the same with nothing kept", { "font-size": 13 }));
    const share = f.frobenius ? `The true distance is ${percent(f.apart / f.frobenius)} of the Frobenius bound, the spectral bound ${percent(f.spectral / f.frobenius)} of it.` : "Both steps are the same.";
    const said = `p = ${percent(s.at / PARTS)}, ${s.order}: a block of ${f.rows.length} of ${m} rows and ${f.cols.length} of ${n} columns holds ${percent(f.kept)} of the squared gradient. ${share} ` +
      `With nothing kept the distance would be ${percent(none.apart)} of the bound; it is ${percent(f.apart / none.apart)} of that.`;
    ui.say(said);
    matrix.setAttribute("aria-label", `The size of the gradient's entries, ${m} × ${n}, the kept block in purple. ${said}`);
    bars.setAttribute("aria-label", `Three bars, shares of the Frobenius bound with nothing kept: ${Object.keys(NAMES).map((k) => `${NAMES[k]} ${percent(f[k])}`).join(", ")}.`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
