// Paint a mask. `base` is base.js, which hra.viz.static puts before this file.
const { make, frame, axes, group, svd, palette } = base;

// a largest matching of rows to columns, by augmenting paths; König's smallest cover
function matching(cells, n) {
  const row_of = Array(n).fill(-1), column_of = Array(n).fill(-1), has = (i, j) => cells[i * n + j] === "1";
  const augment = (i, seen) => {
    for (let j = 0; j < n; j++) {
      if (!has(i, j) || seen[j]) continue;
      seen[j] = true;
      if (row_of[j] < 0 || augment(row_of[j], seen)) { row_of[j] = i; column_of[i] = j; return true; }
    }
    return false;
  };
  for (let i = 0; i < n; i++) augment(i, []);
  // what alternating paths reach from the rows without a partner
  const rows = Array(n).fill(false), columns = Array(n).fill(false);
  const reach = (i) => {
    if (rows[i]) return;
    rows[i] = true;
    for (let j = 0; j < n; j++) if (has(i, j) && !columns[j]) { columns[j] = true; reach(row_of[j]); }
  };
  column_of.forEach((j, i) => { if (j < 0) reach(i); });
  const all = [...Array(n).keys()];
  return { pairs: all.filter((i) => column_of[i] >= 0).map((i) => [i, column_of[i]]),
    rows: all.filter((i) => !rows[i]), columns: all.filter((j) => columns[j]) };
}

function facts({ cells, values }) {
  const n = Math.round(Math.sqrt(cells.length)), found = matching(cells, n);
  return { K: [...cells].filter((c) => c === "1").length, rank: found.pairs.length, ...found,
    sigma: svd({ rows: n, columns: n, values: values.map((v, k) => (cells[k] === "1" ? v : 0)) }).sigma };
}

const CSS = `
.hra-paint { display: grid; gap: 1px; max-width: 24rem; touch-action: manipulation; }
.hra-frame .hra-paint > * { min-width: 0; min-height: 0; aspect-ratio: 1; padding: 0; margin: 0; border-radius: 2px; font-size: .8rem;
  line-height: 1; display: grid; place-items: center; }
.hra-frame .hra-paint > button { border: 1px solid rgba(128,128,128,.6); color: #fff; }
.hra-frame .hra-paint .hra-covered { background: rgba(42,120,214,.28); }
.hra-frame .hra-paint > button[aria-pressed=true] { background: #b4530f; border-color: #b4530f; box-shadow: none; }
.hra-frame .hra-paint > button.hra-covered[aria-pressed=true] { border: 2px solid #2a78d6; }`;

function render({ model, el }) {
  const cells = () => model.get("cells"), n = Math.round(Math.sqrt(cells().length)), order = model.get("order"), tasks = model.get("tasks");
  const ui = frame({ model, el, keys: ["cells"], draw }), solved = tasks.map(() => false);
  ui.root.append(make("style", {}, CSS));
  const put = (k, on) => {
    const c = cells();
    if ((c[k] === "1") !== on) ui.set({ cells: c.slice(0, k) + (on ? "1" : "0") + c.slice(k + 1) });
  };

  // the slider paints so many entries in the order that was drawn
  const count = make("input", { type: "range", id: `${ui.id}-count`, min: 0, max: n * n, step: 1, "data-lm-suppress-shortcuts": "true" }), out = make("output");
  count.addEventListener("input", () => {
    const on = new Set(order.slice(0, +count.value));
    ui.set({ cells: [...Array(n * n).keys()].map((k) => (on.has(k) ? "1" : "0")).join("") });
  });
  ui.controls.append(make("div", {}, make("label", { for: count.id }, "Entries, painted at random:"), " ", out, count));

  const heads = [[], []], grid = make("div", { class: "hra-paint", role: "group", "aria-label": "Entries of the mask", "data-lm-suppress-shortcuts": "true",
    style: `grid-template-columns:repeat(${n + 1},1fr)` });
  const head = (kind) => { const e = make("span", { "aria-hidden": "true" }); heads[kind].push(e); return e; };
  const buttons = [];
  let paint = null;  // what a mouse that is held down paints
  grid.append(make("span"), ...Array.from({ length: n }, () => head(1)));
  for (let k = 0; k < n * n; k++) {
    const b = make("button", { type: "button", tabindex: k ? -1 : 0 });
    b.addEventListener("pointerdown", (e) => { if (e.pointerType === "mouse" && e.button === 0) { paint = cells()[k] !== "1"; put(k, paint); } });
    b.addEventListener("pointerenter", (e) => { if (paint !== null && e.buttons & 1) put(k, paint); });
    b.addEventListener("click", () => { if (paint === null) put(k, cells()[k] !== "1"); paint = null; });
    b.addEventListener("focus", () => buttons.forEach((other) => other.setAttribute("tabindex", other === b ? 0 : -1)));
    b.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
      if (!step) return;
      e.preventDefault();
      const i = Math.floor(k / n) + step[0], j = k % n + step[1];
      if (i >= 0 && i < n && j >= 0 && j < n) buttons[i * n + j].focus();
    });
    if (k % n === 0) grid.append(head(0));
    buttons.push(b);
    grid.append(b);
  }
  document.addEventListener("pointerup", () => setTimeout(() => { paint = null; }));
  const chart = make("div"), list = make("ul", { style: "font-size:.92em" });
  ui.picture.append(make("div", { class: "hra-side" }, grid, make("div", {}, chart, list)));

  function draw() {
    const c = cells(), f = facts({ cells: c, values: model.get("values") }), matched = new Set(f.pairs.map(([i, j]) => i * n + j));
    count.value = f.K;
    out.textContent = f.K;
    [f.rows, f.columns].forEach((lines, kind) => heads[kind].forEach((e, i) => {
      e.textContent = lines.includes(i) ? (kind ? "▼" : "▶") : "";
    }));
    buttons.forEach((b, k) => {
      const i = Math.floor(k / n), j = k % n, covered = f.rows.includes(i) || f.columns.includes(j);
      b.setAttribute("aria-pressed", String(c[k] === "1"));
      b.setAttribute("aria-label", `row ${i + 1}, column ${j + 1}${matched.has(k) ? ", matched" : ""}${covered ? ", covered" : ""}`);
      b.className = covered ? "hra-covered" : "";
      b.textContent = matched.has(k) ? "●" : "";
    });
    const above = f.sigma.filter((s) => s > 1e-9 * (f.sigma[0] || 1)).length, top = f.sigma[0] || 1;
    const plot = axes({ x: [0.4, n + 0.6], y: [0, top], xlabel: "index i", ylabel: "σᵢ of random numbers on the entries", W: 320, H: 230, L: 40,
      xticks: [[1, "1"], [n, String(n)]], yticks: [[0, "0"], [top, top.toFixed(1)]] });
    f.sigma.forEach((s, i) => plot.svg.append(make("rect", { x: plot.X(i + 0.7), width: plot.X(1.6) - plot.X(1), y: plot.Y(s), height: plot.Y(0) - plot.Y(s), fill: palette.families.sparse })));
    plot.svg.setAttribute("aria-label", `${above} of ${n} singular values are above zero.`);
    chart.replaceChildren(plot.svg);
    tasks.forEach(([rank, K], i) => { solved[i] ||= f.rank === rank && f.K === K; });
    list.replaceChildren(...tasks.map(([rank, K], i) => make("li", {}, `Task: rank ${rank} with ${K} entries. `, make("strong", {}, solved[i] ? "Solved." : `Not yet: rank ${f.rank} with ${f.K}.`))));
    const names = (word, at) => (at.length ? `${word}${at.length > 1 ? "s" : ""} ${at.map((i) => i + 1).join(", ")}` : "");
    const cover = [names("row", f.rows), names("column", f.columns)].filter((s) => s).join(" and ");
    ui.say(`${group(f.K)} entries: rank at most ${f.rank}. ` + (f.rank > 1 ? `${f.rank} of them (dots) share no row and no column; ${cover} hold all of them, so no more can. ` :
      f.K ? `${cover} holds all of them. ` : "") +
      `Random numbers on them have ${above} singular values above zero.` + solved.map((s, i) => (s ? ` Task ${i + 1} is solved.` : "")).join(""));
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
