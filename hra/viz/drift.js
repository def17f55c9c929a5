// Masks over the steps of a run. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, frame, axes, ticks, text, palette } = base;

function facts(s, at = s.at) {
  const { K, kept, changed, shared } = s.runs[s.run][at], other = Object.keys(s.against).indexOf(s.other);
  return { K, kept, changed, shared: shared[other], chance: K * s.against[s.other] / (s.shape[0] * s.shape[1]) };
}

// a letter is two digits: of the mask, and of what is new in it, which is no more
const LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
function digits(picture) {
  const both = [...picture].map((c) => {
    const k = LETTERS.indexOf(c), d = Math.floor((Math.sqrt(8 * k + 1) - 1) / 2);
    return [d, k - d * (d + 1) / 2];
  });
  return [both.map(([d]) => d), both.map(([, n]) => n)];
}

function render({ model, el }) {
  const fixed = Object.fromEntries(["runs", "pictures", "steps", "against", "shape", "parts"].map((k) => [k, model.get(k)]));
  const keys = ["run", "at", "other"], state = () => ({ ...fixed, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const { steps, parts } = fixed, drawn = fixed.pictures.map(digits), most = Math.max(...drawn.flatMap(([mask]) => mask));
  const ui = frame({ model, el, keys, draw });
  ui.choices("run", "Run:", Object.keys(fixed.runs));
  ui.slider("at", "Step:", 0, steps.length - 1, { show: (i) => group(steps[i]) });
  ui.choices("other", "Compare with:", Object.keys(fixed.against));
  const side = make("div", { class: "hra-side" }), P = 200, L = parts.length ? 22 : 4;
  const { sparse, "low rank": blue } = palette.families;
  ui.picture.append(side);

  function picture([mask, fresh]) {
    const n = Math.sqrt(mask.length), cell = P / n, svg = make("svg", { viewBox: `0 0 ${P + L + 4} ${P + 26}`, role: "img" });
    const square = (i, size, fill, opacity) => make("rect", { x: L + cell * (i % n) + (cell - size) / 2, y: 2 + cell * Math.floor(i / n) + (cell - size) / 2,
      width: size, height: size, fill, "fill-opacity": opacity });
    mask.forEach((d, i) => d && svg.append(square(i, cell, sparse, 0.8 * d / most)));
    fresh.forEach((d, i) => d && svg.append(square(i, cell * (0.2 + 0.6 * d / most), blue, 1)));
    svg.append(make("rect", { x: L, y: 2, width: P, height: P, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }));
    parts.forEach((part, i) => {
      const y = 2 + P * i / parts.length;
      if (i) svg.append(make("line", { x1: L - 6, x2: L + P, y1: y, y2: y, stroke: "currentColor" }));
      svg.append(text(L - 8, y + P / parts.length / 2 + 5, part, { "text-anchor": "end", "font-size": 12 }));
    });
    svg.append(text(L + P / 2, P + 20, "inputs across, outputs down", { "text-anchor": "middle", "font-size": 12 }));
    return svg;
  }

  const line = (attrs) => ({ stroke: "currentColor", ...attrs });
  function key(...entries) {
    return make("div", { style: "display:flex;flex-wrap:wrap;gap:0 1rem;font-size:.9em" }, ...entries.map(([look, words]) => make("span", {},
      make("svg", { viewBox: "0 0 30 10", style: "width:30px;height:10px;display:inline-block", "aria-hidden": "true" },
        make("line", { x1: 0, x2: 30, y1: 5, y2: 5, "stroke-width": 2.5, ...look })), ` ${words}`)));
  }

  function draw() {
    const s = state(), f = facts(s), all = steps.map((_, i) => facts(s, i)), first = all[0].K, at = steps[s.at];
    const low = steps[0], high = steps[steps.length - 1], chance = s.against[s.other] / (s.shape[0] * s.shape[1]);
    const plot = axes({ x: [low, high], y: [0, 1], xlabel: "step", ylabel: "share", W: 300, H: 240, L: 34, xticks: ticks([low, high]), yticks: [[0, "0"], [0.5, "0.5"], [1, "1"]] });
    const looks = [line({ stroke: sparse }), line({ "stroke-dasharray": "7 4" }), line({ "stroke-dasharray": "1.5 4" })];
    const lines = [all.map((g) => g.kept / first), all.map((g) => g.shared / g.K), steps.map(() => chance)];
    plot.svg.append(make("line", { x1: plot.X(at), x2: plot.X(at), y1: plot.T, y2: plot.H - plot.B, stroke: "currentColor", "stroke-opacity": 0.4 }));
    [2, 1, 0].forEach((i) => {
      plot.svg.append(plot.path(lines[i].map((v, k) => [steps[k], v]), looks[i]));
      if (i < 2) plot.svg.append(make("circle", { cx: plot.X(at), cy: plot.Y(lines[i][s.at]), r: 4.5, fill: looks[i].stroke }));
    });
    const shown = picture(drawn[s.runs[s.run][s.at].picture]);
    const count = s.against[s.other] === f.K ? "those" : `the ${group(s.against[s.other])}`;
    const byLot = f.chance < 10 ? +f.chance.toPrecision(2) : group(Math.round(f.chance));
    const left = s.at ? `${group(f.kept)} of the first ${group(first)} entries are left; ${group(f.changed)} are new since step ${group(steps[s.at - 1])}.` : `the first ${group(first)} entries.`;
    const said = `${s.run}, step ${group(at)}: ${left} ${group(f.shared)} of ${group(f.K)} are among ${count} of ${s.other}, by chance ${byLot}.`;
    side.replaceChildren(make("div", { style: "flex-basis:12rem" }, shown),
      make("div", { style: "flex-basis:14rem" }, plot.svg, key([looks[0], "left of the first mask"], [looks[1], `in ${s.other}`], [looks[2], "by chance"])));
    shown.setAttribute("aria-label", `A coarse picture of the mask of ${s.run} at step ${group(at)}; what is new since the step before in squares.`);
    plot.svg.setAttribute("aria-label", `Over the steps: the share of the first mask that is left, and of the present one that is in ${s.other}. ${said}`);
    ui.say(said);
  }
  ui.start();
}

export default { render, facts, digits };  // facts, digits: so that a test holds them equal to the library
