// The subnet explorer. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, percent, frame, text, palette } = base;
const MOST = 12870, GREEDY = ["independent", "rows", "columns"];  // as in subnet.py
const WORDS = { independent: "rows and columns each by itself", rows: "rows first", columns: "columns first",
  refined: "the best of the three, refined", exact: "the best of all" };

const add = (values) => values.reduce((a, b) => a + b, 0);
// indices of the m largest, ties to the smaller index, in order
const top = (values, m) => [...values.keys()].sort((i, j) => values[j] - values[i] || i - j).slice(0, m).sort((i, j) => i - j);
const turn = (S) => S[0].map((_, j) => S.map((row) => row[j]));
const rowSums = (S, cols) => S.map((row) => add(cols ? cols.map((j) => row[j]) : row));
const colSums = (S, rows) => S[0].map((_, j) => add((rows || [...S.keys()]).map((i) => S[i][j])));
const held = (S, [rows, cols]) => add(rows.map((i) => add(cols.map((j) => S[i][j]))));

function greedy(S, m, n, order) {
  if (order === "columns") return greedy(turn(S), n, m, "rows").reverse();
  const rows = top(rowSums(S), m);
  return [rows, top(colSums(S, order === "rows" ? rows : null), n)];
}

function best(S, m, n) {
  let found = GREEDY.map((o) => greedy(S, m, n, o)).reduce((a, b) => (held(S, b) > held(S, a) ? b : a));
  for (;;) {
    const cols = top(colSums(S, found[0]), n), rows = top(rowSums(S, cols), m);
    if (!(held(S, [rows, cols]) > held(S, found))) return found;
    found = [rows, cols];
  }
}

function comb(n, k) {
  let c = 1;
  for (let i = 1; i <= k; i++) c = Math.round(c * (n - k + i) / i);
  return c;
}

function exact(S, m, n) {
  const d = S.length, k = S[0].length;
  if (comb(k, n) < comb(d, m)) return exact(turn(S), n, m).reverse();
  let most = -1, found = null;
  const rows = [...Array(m).keys()];
  for (;;) {
    const cols = top(colSums(S, rows), n), now = held(S, [rows, cols]);
    if (now > most) { most = now; found = [[...rows], cols]; }
    let i = m - 1;
    while (i >= 0 && rows[i] === d - m + i) i--;
    if (i < 0) return found;
    rows[i]++;
    for (let j = i + 1; j < m; j++) rows[j] = rows[j - 1] + 1;
  }
}

// no m × n block holds more than the m rows with the largest n entries of their own
function ceiling(S, m, n) {
  const largest = (values, k) => add([...values].sort((a, b) => b - a).slice(0, k));
  const one = (A, a, b) => largest(A.map((row) => largest(row, b)), a);
  return Math.min(one(S, m, n), one(turn(S), n, m));
}

function facts({ scores, name, order, sixteenths }) {
  const S = scores[name], d = S.length, k = S[0].length, total = add(rowSums(S));
  const [m, n] = [d, k].map((side) => Math.max(1, Math.floor(sixteenths * side / 16)));
  const found = Object.fromEntries(GREEDY.map((o) => [o, greedy(S, m, n, o)]));
  found.refined = best(S, m, n);
  found.exact = Math.min(comb(d, m), comb(k, n)) <= MOST ? exact(S, m, n) : null;
  const holds = Object.fromEntries(Object.entries(found).map(([o, f]) => [o, f && held(S, f) / total]));
  const [rows, cols] = found[order] || found.refined;
  return { m, n, rows, cols, holds, ceiling: ceiling(S, m, n) / total, chance: m * n / (d * k) };
}

function render({ model, el }) {
  const scores = model.get("scores"), names = Object.keys(scores), keys = ["name", "order", "sixteenths"];
  const state = () => ({ scores, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw });
  if (names.length > 1) ui.choices("name", "Scores:", names);
  ui.choices("order", "Chosen:", Object.entries(WORDS));
  ui.slider("sixteenths", "p, the share of the rows and of the columns:", 1, 16, { show: (v) => `${v}/16` });
  const left = make("svg", { role: "img" }), right = make("svg", { role: "img", viewBox: "0 0 300 190" });
  ui.picture.append(make("div", { class: "hra-side" }, make("div", {}, left), make("div", {}, right)));
  const purple = palette.families.subnet, L = 20;

  function draw() {
    const s = state(), f = facts(s), S = scores[s.name], d = S.length, k = S[0].length;
    const u = 280 / Math.max(d, k), most = Math.max(...S.flat()), rows = new Set(f.rows), cols = new Set(f.cols), nodes = [];
    left.setAttribute("viewBox", `0 0 ${L + u * k + 4} ${L + u * d + 4}`);
    S.forEach((row, i) => row.forEach((v, j) => {
      const inside = rows.has(i) && cols.has(j), x = L + u * j, y = L + u * i;
      const strength = Math.sqrt(v / most);
      if (v) nodes.push(make("rect", { x, y, width: u, height: u, fill: inside ? purple : "currentColor", "fill-opacity": (inside ? 0.25 + 0.6 * strength : 0.4 * strength).toFixed(3) }));
      if (inside) nodes.push(make("rect", { x: x + 0.5, y: y + 0.5, width: u - 1, height: u - 1, fill: "none", stroke: purple, "stroke-width": u > 20 ? 2.5 : 0.8 }));
      if (u > 25) nodes.push(text(x + u / 2, y + u / 2 + 5, group(v), { "text-anchor": "middle", "font-size": u > 50 ? 18 : 11 }));
    }));
    nodes.push(make("rect", { x: L, y: L, width: u * k, height: u * d, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }),
      ...f.rows.map((i) => make("rect", { x: L - 9, y: L + u * i + 0.5, width: 6, height: u - 1, fill: purple })),
      ...f.cols.map((j) => make("rect", { x: L + u * j + 0.5, y: L - 9, width: u - 1, height: 6, fill: purple })));
    left.replaceChildren(...nodes);

    const known = Object.entries(f.holds).filter(([, v]) => v !== null);
    const bound = f.holds.exact === null, full = Math.max(...known.map(([, v]) => v), bound ? f.ceiling : 0, f.chance), X = (v) => 96 + 150 * v / full;
    const bars = [...known, ...(bound ? [["ceiling", f.ceiling]] : []), ["by chance", f.chance]];
    right.replaceChildren(...bars.flatMap(([o, v], i) => [
      text(90, 30 + 30 * i, o, { "text-anchor": "end", "font-weight": o === s.order ? 700 : 400 }),
      make("rect", { x: 96, y: 16 + 30 * i, width: X(v) - 96, height: 19, fill: o in WORDS ? purple : "none", "fill-opacity": o === s.order ? 0.85 : 0.4, stroke: o in WORDS ? purple : "currentColor" }),
      text(X(v) + 5, 30 + 30 * i, percent(v), { "font-size": 13 })]));
    const shown = f.holds[s.order] === null ? "refined" : s.order, part = f.holds[shown];
    const said = `p = ${s.sixteenths}/16: ${f.m} of ${d} outputs and ${f.n} of ${k} inputs, ${WORDS[shown]}: ${percent(part)} of the score; as many random entries hold ${percent(f.chance)}. ` +
      (bound ? `${s.order === "exact" ? "Too many choices to try them all, so the refined one is shown. " : ""}Refined: ${percent(f.holds.refined)}; no subnet holds more than ${percent(f.ceiling)}.`
        : `The best of all holds ${percent(f.holds.exact)}, so this is ${percent(part / f.holds.exact)} of it.`);
    ui.say(said);
    left.setAttribute("aria-label", `The scores, with the chosen rows and columns marked. ${said}`);
    right.setAttribute("aria-label", `Shares of the score, for every order. ${said}`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
