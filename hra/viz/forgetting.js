// The forgetting matrix. `base` is base.js, which hra.viz.static puts before this file.
const { make, frame } = base;

const mean = (x) => x.reduce((a, b) => a + b, 0) / x.length;
const two = (v) => v.toFixed(2).replace("-", "−");
const signed = (v) => (v < 0 ? "" : "+") + two(v);

function facts({ P, P0, name, after }) {
  const rows = P[name], alone = P0[name], last = rows[after - 1].slice(0, after);
  const lost = last.map((v, j) => rows[j][j] - v);
  return { AP: mean(last), FWT: mean(last.map((_, j) => rows[j][j] - alone[j])),
    BWT: after > 1 ? -mean(lost.slice(0, -1)) : null, lost,
    others: Object.fromEntries(Object.entries(P).map(([k, M]) => [k, mean(M[after - 1].slice(0, after))])) };
}

// how deep a value is coloured, from 0 to 1, between the least and the greatest of all methods
function depth(P) {
  const all = Object.values(P).flat(2).filter((v) => v !== null), low = Math.min(...all), high = Math.max(...all);
  return (v) => (high > low ? (v - low) / (high - low) : 0);
}

function render({ model, el }) {
  const [tasks, P, P0] = ["tasks", "P", "P0"].map((k) => model.get(k)), deep = depth(P), N = tasks.length;
  const state = () => ({ P, P0, name: model.get("name"), after: model.get("after") });
  const ui = frame({ model, el, keys: ["name", "after"], draw });
  ui.choices("name", "Method:", Object.keys(P));
  ui.slider("after", "Tasks trained:", 1, N, { show: (n) => `${n}, ${tasks[n - 1]}` });
  const table = make("table", { style: "border-collapse:collapse;width:100%;font-size:.85em;margin:.3rem 0" });
  ui.picture.append(make("div", { style: "overflow-x:auto", tabindex: 0, role: "region", "aria-label": "The matrix of performances" }, table));
  const look = "padding:.25rem .3rem;text-align:center;border:1px solid rgba(128,128,128,.35);";
  const head = (scope, words) => make("th", { scope, style: `${look}font-weight:600` }, words);

  function draw() {
    const s = state(), f = facts(s), rows = P[s.name], at = s.after - 1;
    const cell = (v, j, i) => {
      if (i > at) return make("td", { style: look }, "");
      if (v === null) return make("td", { style: look }, "–");
      const ground = j <= i ? `background:rgba(42,120,214,${(0.45 * deep(v)).toFixed(3)});` : "background:transparent;opacity:.75;";
      const since = i === at && j < i ? make("span", { style: "display:block;font-size:.9em" }, signed(-f.lost[j])) : null;
      return make("td", { style: look + ground + (i === at ? "outline:2px solid currentColor;outline-offset:-2px" : "") }, two(v), since);
    };
    table.replaceChildren(
      make("thead", {}, make("tr", {}, head("col", "after"), ...tasks.map((t) => head("col", t)))),
      make("tbody", {}, ...tasks.map((t, i) => make("tr", {}, head("row", t), ...rows[i].map((v, j) => cell(v, j, i)))),
        make("tr", {}, head("row", "alone"), ...P0[s.name].map((v) => make("td", { style: look }, two(v))))));
    const worst = f.lost.indexOf(Math.max(...f.lost));
    const best = Object.keys(f.others).reduce((a, b) => (f.others[b] > f.others[a] ? b : a));
    ui.say(`${s.name}, ${s.after === 1 ? "one task" : `${s.after} tasks`} trained: AP ${two(f.AP)}, FWT ${signed(f.FWT)}` +
      (f.BWT === null ? "; nothing to forget yet." : `, BWT ${signed(f.BWT)}. ` +
        (f.lost[worst] > 0 ? `Most forgotten: ${tasks[worst]}, from ${two(rows[worst][worst])} to ${two(rows[at][worst])}.` : "Nothing is forgotten.")) +
      (Object.keys(P).length > 1 ? ` Highest AP here: ${best}, ${two(f.others[best])}.` : ""));
  }
  ui.start();
}

export default { render, facts, depth };  // facts, depth: so that a test holds them equal to the library
