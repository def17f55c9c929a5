// The first step of LoRA and of a sparse adapter. `base` is base.js, which hra.viz.static puts before this file.
const { make, frame, text, palette } = base;
const RULES = ["α/r", "α/√r"], MOST = 8;

function share(s, r, rule) {
  const scale = s.alpha / (rule === RULES[0] ? r : Math.sqrt(r));
  return s.optimizer === "Adam" ? scale * r / (Math.sqrt(3) * s.n) : scale * scale * r / (3 * s.n);
}

const facts = (s) => ({ LoRA: share(s, s.r, s.rule), "at rank 1": share(s, 1, s.rule), sparse: s.thousandths / 1000 });
const short = (v) => (v >= 0.01 ? String(Number(v.toPrecision(2))) : v.toExponential(1).replace("e-", " × 10⁻").replace(/⁻(\d+)/, (_, d) => `⁻${[...d].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")}`));

function render({ model, el }) {
  const fixed = Object.fromEntries(["n", "alpha", "measured"].map((k) => [k, model.get(k)]));
  const keys = ["optimizer", "rule", "r", "thousandths"], state = () => ({ ...fixed, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw });
  ui.choices("optimizer", "Optimizer", ["SGD", "Adam"]);
  ui.choices("rule", "Scale", RULES);
  ui.slider("r", "Rank r:", 0, MOST, { show: String, to: (v) => 2 ** v, from: Math.log2 });
  ui.slider("thousandths", "Density of the sparse adapter:", 1, 250, { show: (v) => `${v / 10} %` });
  const svg = make("svg", { role: "img", style: "max-width:34rem" });
  ui.picture.append(svg);
  const blue = palette.families["low rank"], orange = palette.families.sparse;

  function draw() {
    const s = state(), f = facts(s), W = 460, H = 250, L = 66, R = 60, T = 10, B = 40, low = -5, high = 1;
    const X = (r) => L + (W - L - R) * Math.log2(r) / MOST, Y = (v) => T + (H - T - B) * (high - Math.min(high, Math.max(low, Math.log10(v)))) / (high - low);
    const nodes = [];
    for (let e = low; e <= high; e++) {
      const y = Y(10 ** e);
      nodes.push(make("line", { x1: L, x2: W - R, y1: y, y2: y, stroke: "currentColor", "stroke-opacity": 0.15 }),
        text(L - 6, y + 4, e === 0 ? "as full" : e > 0 ? "10 ×" : ["", "1/10", "1/100", "1/1000", "10⁻⁴", "10⁻⁵"][-e], { "text-anchor": "end", "font-size": 12 }));
    }
    for (const r of [1, 4, 16, 64, 256]) nodes.push(text(X(r), H - B + 18, String(r), { "text-anchor": "middle", "font-size": 13 }));
    nodes.push(text((L + W - R) / 2, H - 4, "rank r", { "text-anchor": "middle" }));
    const ranks = [...Array(MOST + 1).keys()].map((k) => 2 ** k);
    RULES.forEach((rule, i) => {
      const chosen = rule === s.rule;
      nodes.push(make("polyline", { points: ranks.map((r) => `${X(r)},${Y(share(s, r, rule))}`).join(" "), fill: "none", stroke: blue, "stroke-width": chosen ? 2.5 : 1.3, "stroke-dasharray": i ? "6 4" : "none" }),
        text(W - R + 4, Y(share(s, 256, rule)) + 4, rule, { "font-size": 13 }));
    });
    nodes.push(make("line", { x1: L, x2: W - R, y1: Y(f.sparse), y2: Y(f.sparse), stroke: orange, "stroke-width": 2 }), text(W - R + 4, Y(f.sparse) - 6, "sparse", { "font-size": 13 }));
    for (const [rule, optimizer, points] of fixed.measured) {
      if (optimizer !== s.optimizer) continue;
      for (const [r, v] of points) nodes.push(make("circle", { cx: X(r), cy: Y(v), r: 3.5, fill: rule === s.rule ? blue : "none", stroke: blue, "stroke-width": 1.3 }));
    }
    nodes.push(make("circle", { cx: X(s.r), cy: Y(f.LoRA), r: 7, fill: "none", stroke: "currentColor", "stroke-width": 2 }));
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.replaceChildren(...nodes);
    const times = f.LoRA / f["at rank 1"], than = Math.abs(times - 1) < 1e-9 ? "as far as rank 1 does" : `${short(times)} times as far as rank 1 does`;
    const said = `With ${s.optimizer} and ${s.rule}, LoRA of rank ${s.r} moves the output by ${short(f.LoRA)} of full fine-tuning's first step, ${than}. ` +
      `A sparse adapter of ${s.thousandths / 10} % moves it by ${short(f.sparse)}, whatever its rank.`;
    ui.say(said);
    svg.setAttribute("aria-label", `Lines on logarithmic scales, first step against rank. ${said}`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
