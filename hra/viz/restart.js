// The restart explorer. `base` is base.js, which hra.viz.static puts before this file.
const { make, frame, axes, palette, short } = base;

const ROUNDING = 1e-5;  // of the largest, as in restart.py
const rank = (sigma) => { const top = Math.max(...sigma); return sigma.filter((v) => v > ROUNDING * top).length; };

function facts({ spectra, name, restarts, least }) {
  const rounds = spectra[name], at = restarts - 1;
  return { rank: rank(rounds[at]), first: rank(rounds[0]), above: rounds[at].filter((v) => v > least).length,
    ranks: Object.fromEntries(Object.entries(spectra).map(([k, s]) => [k, rank(s[at])])) };
}

function render({ model, el }) {
  const spectra = model.get("spectra"), least = model.get("least"), names = Object.keys(spectra);
  const state = () => ({ spectra, least, name: model.get("name"), restarts: model.get("restarts") });
  const ui = frame({ model, el, keys: ["name", "restarts"], draw });
  ui.choices("name", "Restarted as:", names);
  ui.slider("restarts", "Rounds:", 1, spectra[names[0]].length);

  const all = names.flatMap((k) => spectra[k].flatMap((s) => s.filter((v) => v > ROUNDING * Math.max(...s))));
  const n = spectra[names[0]][0].length, top = Math.max(...all, least), low = Math.max(Math.min(...all, least), top / 1e4);
  const plot = axes({ x: [1, Math.max(2, n)], y: [low, top], logy: true, xlabel: "index i", ylabel: "singular value σᵢ (log scale)", H: 300,
    xticks: [[1, "1"], [n, String(n)]], yticks: [[low, low.toPrecision(2)], [top, top.toPrecision(2)]] });
  const line = plot.Y(least);
  const faint = make("g"), own = make("g");
  plot.svg.append(make("line", { x1: plot.L, x2: plot.W - plot.R, y1: line, y2: line, stroke: "currentColor", "stroke-dasharray": "2 4" }),
    plot.text(plot.W - plot.R, line - 5, short(least), { "text-anchor": "end", "font-size": 13 }), faint, own);
  ui.picture.append(plot.svg);
  // what is rounding alone is left out: the curve ends at its rank
  const points = (s) => s.map((v, i) => [i + 1, v > ROUNDING * Math.max(...s) ? Math.max(v, low) : null]);

  function draw() {
    const s = state(), f = facts(s), at = s.restarts - 1;
    faint.replaceChildren(...names.filter((k) => k !== s.name).map((k) =>
      plot.path(points(spectra[k][at]), { stroke: "currentColor", "stroke-opacity": 0.35, "stroke-width": 1.8 })));
    own.replaceChildren(plot.path(points(spectra[s.name][at]), { stroke: palette.families.square }));
    const others = names.filter((k) => k !== s.name).map((k) => `${k} ${f.ranks[k]}`).join(", ");
    const said = `${s.name}, ${s.restarts === 1 ? "one round" : `${s.restarts} rounds`}: rank ${f.rank} of ${n}` +
      `${s.restarts > 1 ? ` (after the first round ${f.first})` : ""}; ${f.above} singular values above ${short(least)}.` +
      (others ? ` The others: ${others}.` : "");
    ui.say(said);
    plot.svg.setAttribute("aria-label", `Singular values of the accumulated change on a logarithmic scale. ${said}`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
