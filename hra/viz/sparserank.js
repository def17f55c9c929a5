// The best low rank of a sparse matrix. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, short, percent, frame, axes, pixels, svd, palette } = base;
const ZERO = 1e-9;

const present = ({ changes, mask, at }) => changes[mask][changes[mask].length > 1 ? at : 0];

// the change, row by row
function matrix(s) {
  const one = present(s), [rows, columns] = one.shape, bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const bits = bytes(one.bits), values = new Int16Array(bytes(one.values).buffer), out = new Float64Array(rows * columns);
  let next = 0;
  for (let k = 0; k < out.length; k++) if (bits[k >> 3] >> (k & 7) & 1) out[k] = values[next++] * one.unit;
  return { rows, columns, values: out };
}

const known = new WeakMap();  // one decomposition a matrix
function parts(s) {
  const one = present(s);
  if (!known.has(one)) { const S = matrix(s); known.set(one, { S, ...svd(S) }); }
  return known.get(one);
}

const squares = (sigma) => sigma.reduce((t, v) => t + v * v, 0);
const share = (sigma, r) => squares(sigma.slice(0, r)) / squares(sigma);

function facts(s) {
  const { S, sigma } = parts(s), r = Math.min(s.r, sigma.length), next = sigma[r] > ZERO * sigma[0] ? sigma[r] : 0;
  const K = S.values.filter((v) => v !== 0).length, energy = squares(sigma), cut = squares(sigma.slice(r));
  const same = S.rows === s.shape[0] && S.columns === s.shape[1];
  return { K, rank: sigma.filter((v) => v > ZERO * sigma[0]).length, r, kept: next ? 1 - cut / energy : 1,
    full: same ? share(s.full, r) : null, random: same ? share(s.random, r) : null,
    next: next * next / energy, left: next ? cut / (next * next) : null, matched: K / (S.rows + S.columns),
    lora: Math.floor(K / (S.rows + S.columns) + 0.05) };
}

// S less its best matrix of rank r
function residual(s) {
  const { S, pairs } = parts(s), values = S.values.slice();
  for (const [u, v] of pairs.slice(0, s.r)) for (let i = 0, k = 0; i < S.rows; i++) for (let j = 0; j < S.columns; j++) values[k++] -= u[i] * v[j];
  return { ...S, values };
}

function render({ model, el }) {
  const fixed = Object.fromEntries(["changes", "densities", "shape", "full", "random"].map((k) => [k, model.get(k)]));
  const keys = ["mask", "at", "r"], state = () => ({ ...fixed, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw }), low = palette.families["low rank"];
  ui.choices("mask", "Mask:", Object.keys(fixed.changes));
  const density = ui.slider("at", "Density asked for:", 0, fixed.densities.length - 1, { show: (i) => percent(fixed.densities[i]) });
  const ranks = ui.slider("r", "Rank kept, r:", 0, Math.min(...fixed.shape), { show: () => facts(state()).r });
  const match = ui.button("", () => ui.set({ r: facts(state()).lora }));
  ranks.append(make("div", { class: "hra-buttons" }, match));
  const chart = make("div"), canvases = [0, 1].map(() => make("canvas", { role: "img", class: "hra-pixels" })), under = [0, 1].map(() => make("p"));
  ui.picture.append(make("div", { class: "hra-side" }, chart, make("div", {}, make("div", { class: "hra-side", style: "flex-wrap:nowrap;font-size:.9em" },
    ...canvases.map((canvas, i) => make("div", { style: "flex-basis:0" }, canvas, under[i]))),
  make("p", { style: "font-size:.9em" }, "Blue above zero, orange below, both on the scale of S."))));

  function picture(i, M, most, name, said) {
    Object.assign(canvases[i], { width: M.columns, height: M.rows });
    canvases[i].style.aspectRatio = `${M.columns} / ${M.rows}`;
    pixels(canvases[i], M, most);
    under[i].textContent = name;
    canvases[i].setAttribute("aria-label", said);
  }

  function draw() {
    const s = state(), f = facts(s), { S, sigma } = parts(s), n = sigma.length, same = f.lora;
    density.hidden = fixed.changes[s.mask].length < 2;  // it has a density of its own
    const input = ranks.querySelector("input");
    input.max = n;
    input.value = f.r;
    match.textContent = same ? `LoRA of as many numbers: ${same}` : "no LoRA has so few numbers";
    match.disabled = !same;
    match.setAttribute("aria-pressed", String(same > 0 && f.r === same));

    const all = [...Array(n + 1).keys()], at = (v) => all.map((r) => [r, share(v, r)]);
    const plot = axes({ x: [0, n], y: [0, 1], xlabel: "rank r", ylabel: "share of the energy kept", H: 300, W: 400, L: 50,
      xticks: [[0, "0"], [n, String(n)]], yticks: [[0, "0"], [0.5, "50 %"], [1, "100 %"]] });
    const key = [["S", { stroke: palette.families.sparse }]];
    if (f.full !== null) key.push(["a full change", { stroke: palette.families.full }], ["dense, random", { stroke: "currentColor", "stroke-dasharray": "2 4" }]);
    const curves = key.map(([, look], i) => plot.path(at([sigma, fixed.full, fixed.random][i]), look));
    key.push(["LoRA, as many", { stroke: low, "stroke-dasharray": "5 3", "stroke-width": 1.5 }]);
    key.forEach(([name, look], i) => {
      const y = plot.H - plot.B - 18 * (key.length - i) + 4, x = plot.W - 150;
      plot.svg.append(make("path", { d: `M${x},${y}h24`, "stroke-width": 2.5, ...look }), plot.text(x + 30, y + 4, name, { "font-size": 13 }));
    });
    const x = plot.X(Math.min(f.matched, n));
    plot.svg.append(...curves.reverse(), make("path", { d: `M${x},${plot.T}V${plot.H - plot.B}`, ...key.at(-1)[1] }));
    plot.svg.append(make("circle", { cx: plot.X(f.r), cy: plot.Y(f.kept), r: 6, fill: palette.families.sparse, stroke: "currentColor" }));
    chart.replaceChildren(plot.svg);

    const sizes = [...S.values].map(Math.abs).filter((v) => v).sort((a, b) => a - b), most = sizes[Math.ceil(0.9 * (sizes.length - 1))];
    picture(0, S, most, "S", `Picture of S, ${s.mask}: ${group(f.K)} entries.`);
    picture(1, residual({ ...s, r: f.r }), most, `what rank ${f.r} leaves`, `Picture of what rank ${f.r} leaves of S: ${percent(1 - f.kept)} of its energy.`);
    const asked = !density.hidden && Math.abs(f.K - s.densities[s.at] * S.values.length) > 1 ? `, where ${percent(s.densities[s.at])} was asked for` : "";
    const said = `${s.mask}: ${group(f.K)} of ${S.rows} × ${S.columns} entries (${percent(f.K / S.values.length)}${asked}), rank ${f.rank}. ` +
      `The best matrix of rank ${f.r} keeps ${percent(f.kept)} of the energy` +
      (f.full === null ? ". " : `, of a full change ${percent(f.full)}, of dense random numbers ${percent(f.random)}. `) +
      (f.left === null ? "Nothing is left. " : `What is left is ${short(f.left)} times the next σ², ${percent(f.next)}. `) +
      `As many numbers make a LoRA of rank ${short(f.matched)}.`;
    ui.say(said);
    plot.svg.setAttribute("aria-label", `Curves, share of the energy against the rank. ${said}`);
  }
  ui.start();
}

export default { render, facts, matrix, residual };  // so that a test holds them equal to the library
