// A table to sort and to filter. `base` is base.js, which hra.viz.static puts before this file.
const { make, frame } = base;

const place = (s, title) => s.columns.findIndex(([t]) => t === title);

// the rows that are shown, in their order: equal ones as they were given, gaps last
function order(s) {
  const rows = [...s.cells.keys()].filter((i) => Object.entries(s.choice).every(([t, v]) => s.cells[i][place(s, t)] === v));
  if (!s.sort) return rows;
  const j = place(s, s.sort), sign = s.descending ? -1 : 1;
  return rows.sort((a, b) => {
    const [x, y] = [s.ranks[a][j], s.ranks[b][j]];
    return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
  });
}
const facts = (s) => order(s).map((i) => s.cells[i][0]);

function summary(s) {
  const rows = order(s), j = place(s, s.sort), chosen = Object.entries(s.choice).map(([t, v]) => `${t}: ${v}`).join(", ");
  const names = rows.filter((i) => !s.sort || s.ranks[i][j] !== null).map((i) => s.cells[i][0]), gaps = rows.length - names.length;
  const ends = names.length < 4 ? names : [names[0], "…", names[names.length - 1]];
  const by = s.sort ? `, by ${s.sort}, ${[["A to Z", "Z to A"], ["smallest first", "largest first"]][+s.columns[j][1]][+s.descending]}` : "";
  return `${rows.length} of ${s.cells.length} ${s.noun}${chosen && ` (${chosen})`}${by}${names.length ? `: ${ends.join(", ")}` : ""}` +
    (gaps ? `; ${gaps} without ${s.sort}, last` : "");
}

const CSS = `
.hra-family table { border-collapse: collapse; margin: .3rem 0; font-size: .9em; width: auto; }
.hra-family th, .hra-family td { padding: .25rem .6rem; text-align: left; vertical-align: baseline; border: 0;
  border-bottom: 1px solid rgba(128,128,128,.35); }
.hra-family .hra-number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.hra-family tbody th { font-weight: inherit; max-width: 9.5rem; overflow-wrap: anywhere; }
.hra-family tr > :first-child { position: sticky; left: 0; z-index: 1;
  background: var(--pst-color-background, var(--jp-layout-color0, var(--vscode-editor-background, canvas))); }
.hra-family thead th.hra-number { white-space: normal; }
.hra-family thead th { padding: 0 .1rem; vertical-align: bottom; border-bottom: 2px solid rgba(128,128,128,.6); }
.hra-frame .hra-family button { border-color: transparent; font-weight: 600; text-align: inherit; width: 100%; padding: .1rem .5rem; }
.hra-frame .hra-family :focus-visible { outline-offset: -2px; }
.hra-family button::after { content: "\u00a0↕"; content: "\u00a0↕" / ""; opacity: .55; }
.hra-family [aria-sort=ascending] button::after { content: "\u00a0▲"; content: "\u00a0▲" / ""; opacity: 1; }
.hra-family [aria-sort=descending] button::after { content: "\u00a0▼"; content: "\u00a0▼" / ""; opacity: 1; }`;

function render({ model, el }) {
  const fixed = Object.fromEntries(["columns", "cells", "ranks", "filters", "noun"].map((k) => [k, model.get(k)]));
  const keys = ["sort", "descending", "choice"], state = () => ({ ...fixed, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw }), { columns, cells, filters } = fixed;
  const menus = Object.entries(filters).map(([title, values], i) => {
    const e = make("select", { id: `${ui.id}-filter${i}` }, ...["all", ...values].map((v, k) => make("option", { value: k - 1 }, v)));
    e.addEventListener("change", () => {
      const { [title]: _, ...rest } = model.get("choice");
      ui.set({ choice: +e.value < 0 ? rest : { ...rest, [title]: values[+e.value] } });
    });
    ui.controls.append(make("div", {}, make("label", { for: e.id }, `${title}:`), e));
    return () => { e.value = values.indexOf(model.get("choice")[title]); };
  });
  const look = (j) => (columns[j][1] ? "hra-number" : null);
  const heads = columns.map(([title], j) => {
    const press = () => ui.set(model.get("sort") === title ? { descending: !model.get("descending") } : { sort: title, descending: false });
    return make("th", { scope: "col", class: look(j) }, ui.button(title, press));
  });
  const body = make("tbody"), rows = cells.map((row) => make("tr", {}, ...row.map((c, j) => make(j ? "td" : "th", { class: look(j), scope: j ? null : "row" }, c))));
  ui.picture.classList.add("hra-family");
  ui.picture.append(make("style", {}, CSS), make("div", { style: "overflow-x:auto", tabindex: 0, role: "region", "aria-label": model.get("title") || "A table" },
    make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)));

  function draw() {
    const s = state();
    menus.forEach((f) => f());
    heads.forEach((th, j) => th.setAttribute("aria-sort", columns[j][0] !== s.sort ? "none" : s.descending ? "descending" : "ascending"));
    body.replaceChildren(...order(s).map((i) => rows[i]));
    ui.say(`${summary(s)}.`);
  }
  ui.start();
}

export default { render, facts, summary };  // facts, summary: so that a test holds them equal to the library
