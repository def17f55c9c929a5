// LoSiA's slots. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, frame, axes, ticks, palette } = base;

const starts = (s, b) => {
  const out = [];
  for (let k = s.schedule === "async" ? b * s.period : 0; k < s.steps; k += s.period * s.layers) out.push(k);
  return out;
};
const moves = (s, b) => starts(s, b).map((k) => k + s.period).filter((e) => e <= s.steps);
const warmed = (s, b) => moves(s, b).filter((e) => e >= s.warmup * s.steps);

function facts(s) {
  const blocks = [...Array(s.layers).keys()], step = Math.min(s.at, s.steps) - 1, inside = (k) => step >= k && step - k < s.period;
  const count = blocks.map((b) => moves(s, b).length);
  return {
    moves: count, never: blocks.filter((b) => !count[b]).map((b) => b + 1),
    enough: s.period * (s.schedule === "sync" ? 1 : s.layers),
    watching: blocks.filter((b) => starts(s, b).some(inside)).map((b) => b + 1),
    warming: blocks.flatMap((b) => warmed(s, b).filter(inside).map((e) => [b + 1, +((step - e + 1) / (s.period + 1)).toFixed(4)])),
  };
}

// 1, 2 and 5; from ten on only how many
const list = (blocks) => (blocks.length > 6 ? `${blocks.length} blocks` : `block${blocks.length > 1 ? "s" : ""} ${blocks.join(", ")}`);

function render({ model, el }) {
  const keys = ["period", "layers", "steps", "at", "schedule"], most = model.get("most");
  const state = () => ({ warmup: model.get("warmup"), ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw }), count = { show: group };
  ui.slider("period", "T, steps of a slot:", 1, most.period, count);
  ui.slider("layers", "L, blocks:", 1, most.layers, count);
  ui.slider("steps", "N, steps of the run:", 1, most.steps, count);
  ui.slider("at", "Look at step:", 1, most.steps, count);
  ui.choices("schedule", "Slots:", [["async", "one block after the other"], ["sync", "all at once"]]);

  function draw() {
    const s = state(), f = facts(s), at = Math.min(s.at, s.steps), purple = palette.families.subnet, few = s.layers <= 12;
    const plot = axes({ x: [0, s.steps], y: [s.layers + 0.5, 0.5], xlabel: "step", ylabel: "block", H: 110 + Math.max(90, 16 * s.layers), L: 40,
      xticks: ticks([0, s.steps]), yticks: [...Array(s.layers).keys()].map((b) => b + 1).filter((b) => few || b === 1 || b % 8 === 0).map((b) => [b, b]) });
    const high = plot.Y(1.7) - plot.Y(1), nodes = [];
    const bars = (spans, y, h) => spans.map(([a, b]) => `M${plot.X(a)},${y - h / 2}H${plot.X(Math.min(b, s.steps))}v${h}H${plot.X(a)}z`).join("");
    for (let b = 0; b < s.layers; b++) {
      const y = plot.Y(b + 1), never = f.never.includes(b + 1), spans = (list) => list.map((k) => [k, k + s.period]);
      nodes.push(make("line", { x1: plot.X(0), x2: plot.X(s.steps), y1: y, y2: y, stroke: "currentColor", "stroke-opacity": 0.5, "stroke-dasharray": never ? "3 5" : null }),
        make("path", { d: bars(spans(warmed(s, b).filter((e) => e < s.steps)), y, 0.6 * high), fill: "none", stroke: purple, "stroke-width": 1.2 }),
        make("path", { d: bars(spans(starts(s, b)), y, high), fill: purple }));
    }
    const x = plot.X(at - 0.5);
    plot.svg.append(...nodes, make("line", { x1: x, x2: x, y1: plot.T, y2: plot.H - plot.B, stroke: "currentColor", "stroke-dasharray": "2 3" }));
    ui.picture.replaceChildren(plot.svg);
    const total = f.moves.reduce((a, b) => a + b, 0), warm = f.warming.map(([b, r]) => `block ${b} at ${+r.toFixed(2)} of its rate`);
    const said = `In step ${group(at)} of ${group(s.steps)} ${f.watching.length ? `${list(f.watching)} watch${f.watching.length > 1 ? "" : "es"}` : "nobody watches"}; ` +
      `${warm.length > 3 ? `${warm.length} blocks re-warm` : warm.length ? `re-warming: ${warm.join(", ")}` : "nobody re-warms"}; all ${s.layers} train. ` +
      `The run has ${group(total)} move${total === 1 ? "" : "s"}. ` +
      (f.never.length ? `Never localised: ${list(f.never)}; all have moved after ${group(f.enough)} steps, so begin refuses this run.`
        : `All blocks have moved after ${group(f.enough)} steps.`);
    ui.say(said);
    plot.svg.setAttribute("aria-label", `Blocks over steps: slots filled, re-warming hollow. ${said}`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
