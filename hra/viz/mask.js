// The mask explorer. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, percent, frame, axes, text, palette } = base;

function facts(s) {
  const rules = Object.keys(s.table), total = s.shape[0] * s.shape[1];
  const of = (rule) => {
    const { K, structural, mask_rank, rows, parts } = s.table[rule][s.at];
    return { K, density: K / total, structural, mask_rank, rows, parts };
  };
  const one = of(s.rule), two = of(s.other);
  return { ...one, other: two, shared: s.shared[s.at][rules.indexOf(s.rule)][rules.indexOf(s.other)], chance: one.K * two.K / total };
}

function render({ model, el }) {
  const fixed = Object.fromEntries(["table", "shared", "densities", "shape", "parts"].map((k) => [k, model.get(k)]));
  const keys = ["rule", "other", "at"], state = () => ({ ...fixed, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw }), rules = Object.keys(fixed.table), { parts, shape } = fixed;
  ui.choices("rule", "Mask:", rules);
  ui.choices("other", "Compare with:", rules);
  ui.slider("at", "Density asked for:", 0, fixed.densities.length - 1, { show: (i) => percent(fixed.densities[i]) });
  const side = make("div", { class: "hra-side" });
  ui.picture.append(side);
  const colours = [palette.families.sparse, "currentColor"], P = 200, L = 22;

  function mask(one, name, fill) {
    const n = Math.sqrt(one.cells.length), svg = make("svg", { viewBox: `0 0 ${P + L + 4} ${P + 26}`, role: "img" });
    [...one.cells].forEach((c, i) => {
      if (+c) svg.append(make("rect", { x: L + P * (i % n) / n, y: 2 + P * Math.floor(i / n) / n, width: P / n, height: P / n, fill, "fill-opacity": +c / 9 }));
    });
    svg.append(make("rect", { x: L, y: 2, width: P, height: P, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }));
    parts.forEach((part, i) => {
      const y = 2 + P * i / parts.length;
      if (i) svg.append(make("line", { x1: L - 6, x2: L + P, y1: y, y2: y, stroke: "currentColor" }));
      svg.append(text(L - 8, y + P / parts.length / 2 + 5, part, { "text-anchor": "end" }));
    });
    svg.append(text(L + P / 2, P + 20, name, { "text-anchor": "middle" }));
    return svg;
  }
  const split = (one) => (parts.length ? `; ${parts.map((p, i) => `${p} ${group(one.parts[i])}`).join(", ")}` : "");

  function draw() {
    const s = state(), f = facts(s), pair = [s.rule, s.other].map((rule) => s.table[rule][s.at]), same = s.rule === s.other;
    const plot = axes({ x: [0, 1], y: [0, 1], xlabel: `index i, 1 to ${Math.min(...shape)}`, ylabel: "σᵢ / σ₁ of random values on it", W: 300, H: 250, L: 30,
      xticks: [[0, "1"], [1, group(Math.min(...shape))]], yticks: [[0, "0"], [1, "1"]] });
    pair.slice(0, same ? 1 : 2).reverse().forEach((one, i) => plot.svg.append(plot.path(one.sigma.map((v, k) => [k / (one.sigma.length - 1), v]),
      { stroke: colours[same ? 0 : 1 - i], "stroke-dasharray": same || i ? null : "6 4" })));
    const pictures = pair.slice(0, same ? 1 : 2).map((one, i) => mask(one, [s.rule, s.other][i], colours[i]));
    pictures.forEach((svg, i) => svg.setAttribute("aria-label", `A coarse picture of the mask ${[s.rule, s.other][i]}${split(pair[i])}.`));
    side.replaceChildren(...[...pictures, plot.svg].map((svg) => make("div", { style: "flex-basis:12rem" }, svg)));
    const least = Math.min(...shape);
    const second = same ? "" : ` ${s.other}: ${group(f.other.K)} entries in ${group(f.other.rows)} rows${split(pair[1])}; rank at most ${group(f.other.structural)}. ` +
      `The two share ${group(f.shared)} entries; by chance it would be ${group(Math.round(f.chance))}.`;
    const said = `${s.rule} picks ${group(f.K)} of ${shape[0]} × ${shape[1]} entries (${percent(f.density)}) in ${group(f.rows)} rows${split(pair[0])}. ` +
      `A change on them has rank at most ${group(f.structural)} of ${group(least)}; the mask of zeros and ones has rank ${group(f.mask_rank)}.${second}`;
    ui.say(said);
    plot.svg.setAttribute("aria-label", `Singular values of random numbers on the masks. ${said}`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
