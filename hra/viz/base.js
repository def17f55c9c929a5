// What the widgets share. hra.viz.static puts this file in front of each widget's own
// script, which finds it all under one name: const { make, frame } = base;
const base = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const DRAWN = "svg g path line rect circle text tspan".split(" ");

  // a node: HTML or SVG by its tag; kids that are null or false are left out
  const make = (tag, attrs = {}, ...kids) => {
    const e = DRAWN.includes(tag) ? document.createElementNS(NS, tag) : document.createElement(tag);
    for (const k in attrs) if (attrs[k] !== false && attrs[k] != null) e.setAttribute(k, attrs[k] === true ? "" : attrs[k]);
    e.append(...kids.filter((kid) => kid != null && kid !== false));
    return e;
  };

  // numbers in words
  const group = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
  const size = (b) => {
    let i = 0;
    while (b >= 1024 && i < 4) { b /= 1024; i++; }
    return `${i ? b.toFixed(b < 10 ? 2 : 1) : b} ${["B", "KiB", "MiB", "GiB", "TiB"][i]}`;
  };
  const short = (v) => (Number.isInteger(v) ? group(v) : String(+v.toPrecision(3)));
  const percent = (p) => `${+(100 * p).toPrecision(3)} %`;
  const ms = (t) => `${t < 0.1 ? t.toFixed(3) : t < 10 ? t.toFixed(2) : t.toFixed(1)} ms`;

  // as in hra.viz.style: one colour a family, which a page may say better for its ground;
  // five more for the parts of a bill
  const palette = {
    families: { "low rank": "var(--hra-lowrank,#2a78d6)", sparse: "var(--hra-sparse,#d1661f)",
      square: "var(--hra-square,#1b9e77)", subnet: "var(--hra-subnet,#8e5bd0)",
      "before LoRA": "var(--hra-before,#808080)", seeded: "#d6457f", full: "currentColor" },
    parts: { weights: "#00a0b4", trained: "#a3830b", gradients: "#b0524a", moments: "#6f9a22",
      activations: "#6272a8" },
    baseline: "var(--hra-before,#808080)",
  };

  const CSS = `
.hra-frame { margin: 0 0 1rem; padding: .8rem 1rem; border: 1px solid rgba(128,128,128,.45); border-radius: .4rem;
  max-width: 46rem; box-sizing: border-box; }
canvas.hra-pixels { width: 100%; image-rendering: pixelated; border: 1px solid rgba(128,128,128,.5);
  box-sizing: border-box; display: block; }
.hra-frame p { margin: .4rem 0; }
.hra-frame .hra-title { font-weight: 600; margin-top: 0; }
.hra-frame figcaption { font-size: .92em; margin: .5rem 0 0; text-align: left; color: inherit; }
.hra-controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); gap: .4rem 1.2rem; }
.hra-controls select { display: block; width: 100%; font: inherit; min-height: 1.75rem; }
.hra-controls input[type=range], .hra-guess input[type=range] { width: 100%; min-height: 1.75rem;
  accent-color: #2a78d6; margin: 0; }
.hra-buttons { margin: .35rem 0; display: flex; flex-wrap: wrap; gap: .3rem .4rem; align-items: center; font-size: .9em; }
.hra-frame button { font: inherit; color: inherit; background: transparent; min-height: 1.75rem; min-width: 1.75rem;
  border: 1px solid rgba(128,128,128,.7); border-radius: .3rem; padding: .1rem .55rem; cursor: pointer; }
.hra-frame button:hover { background: rgba(128,128,128,.18); }
.hra-frame button[aria-pressed=true] { border-color: var(--hra-lowrank,#2a78d6); box-shadow: inset 0 0 0 1px #2a78d6; }
.hra-frame :focus-visible { outline: 2px solid #2a78d6; outline-offset: 2px; }
.hra-frame svg { width: 100%; height: auto; display: block; }
.hra-side { display: flex; flex-wrap: wrap; gap: .5rem 1rem; }
.hra-side > * { flex: 1 1 15rem; min-width: 0; max-width: 100%; }
.hra-guess fieldset { border: 0; margin: 0; padding: 0; }
.hra-guess legend { font-size: 1em; font-weight: 600; margin: 0 0 .3rem; float: none; width: auto; }
.hra-guess label { display: block; min-height: 1.75rem; }
.hra-frame .hra-gap p:focus-visible { outline: none; }
.hra-gap svg { max-width: 28rem; }
.hra-gap { border-left: 3px solid #2a78d6; padding-left: .7rem; }`;

  function dress() {
    if (!document.getElementById("hra-base")) document.head.append(make("style", { id: "hra-base" }, CSS));
  }

  // "84 too high, 8 times the answer": how far a guess is off
  function gap(p, guess) {
    const unit = p.unit ? ` ${p.unit}` : "", why = p.why ? ` ${p.why}` : "";
    if (p.choices) return (guess === p.answer ? `You said ${guess}, and so it is.` : `You said ${guess}; it is ${p.answer}.`) + why;
    const off = guess - p.answer, times = guess > 0 && p.answer > 0 ? Math.max(guess / p.answer, p.answer / guess) : 0;
    const words = Math.abs(off) < 1e-12 ? "exactly right." :
      `${short(+Math.abs(off).toPrecision(3))} too ${off > 0 ? "high" : "low"}` +
      (times >= 1.5 ? `, ${short(+times.toPrecision(2))} times too ${off > 0 ? "large" : "small"}.` : ".");
    return `You said ${short(guess)}${unit}; the answer is ${short(p.answer)}${unit}: ${words}${why}`;
  }

  const text = (x, y, s, more = {}) => make("text", { x, y, fill: "currentColor", "font-size": 14, ...more }, s);

  // round numbers between two, about n of them: [[value, text], ...]
  function ticks([a, b], n = 4) {
    const rough = (b - a) / n || 1, ten = 10 ** Math.floor(Math.log10(rough));
    const step = ten * [1, 2, 5, 10].find((k) => k * ten >= 0.99 * rough), out = [];
    for (let k = Math.ceil(a / step - 1e-9); k * step <= b + 1e-9 * step; k++) {
      const v = +(k * step).toPrecision(12);
      out.push([v, step < 1 ? v.toFixed(Math.min(6, Math.ceil(-Math.log10(step) - 1e-9))) : short(v)]);
    }
    return out;
  }

  // an empty plot: svg to add to, X and Y from data to pixels, path of points; the y label
  // stands above the axis, never on a curve. x, y: [low, high]; ticks: [[value, text], ...]
  function axes({ x, y, xlabel = "", ylabel = "", xticks = [], yticks = [], W = 480, H = 250, L = 56, logx, logy }) {
    const R = 14, T = 28, B = 46, f = (log) => (log ? Math.log10 : (v) => v);
    const span = (v, [a, b], log) => (f(log)(v) - f(log)(a)) / (f(log)(b) - f(log)(a) || 1);
    const X = (v) => +(L + (W - L - R) * span(v, x, logx)).toFixed(1);
    const Y = (v) => +(H - B - (H - T - B) * Math.min(1, Math.max(0, span(v, y, logy)))).toFixed(1);
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" },
      make("path", { d: `M${L},${T}V${H - B}H${W - R}`, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }),
      ...xticks.map(([v, s]) => text(X(v), H - B + 17, s, { "text-anchor": X(v) > W - 24 ? "end" : "middle", "font-size": 13 })),
      ...yticks.map(([v, s]) => text(L - 6, Y(v) + 4, s, { "text-anchor": "end", "font-size": 13 })),
      text((L + W - R) / 2, H - 8, xlabel, { "text-anchor": "middle" }), text(2, 15, ylabel));
    // a point whose y is no number breaks the line
    const path = (points, attrs) => {
      let d = "", pen = "M";
      for (const [a, b] of points) {
        if (b == null || !Number.isFinite(b)) { pen = "M"; continue; }
        d += `${pen}${X(a)},${Y(b)}`;
        pen = "L";
      }
      return make("path", { d, fill: "none", "stroke-width": 2.5, "stroke-linejoin": "round", ...attrs });
    };
    return { svg, X, Y, path, text, W, H, L, R, T, B };
  }

  // signed entries as pixels, as strong as |v| is against `most`: blue above zero, orange below
  function pixels(canvas, { rows, columns, values }, most) {
    const ctx = canvas.getContext("2d"), image = ctx.createImageData(columns, rows);
    values.forEach((v, i) => {
      const colour = v > 0 ? [42, 120, 214] : [209, 102, 31];
      image.data.set([...colour, 255 * Math.min(1, Math.abs(v) / most)], 4 * i);
    });
    ctx.putImageData(image, 0, 0);
  }

  // singular value decomposition by rotating pairs of columns until all are orthogonal:
  // sigma, largest first, and as many pairs [σ u, v] that add up to the matrix
  function svd({ rows, columns, values }) {
    const column = (j) => Float64Array.from({ length: rows }, (_, i) => values[i * columns + j]);
    const A = Array.from({ length: columns }, (_, j) => column(j));
    const V = A.map((_, j) => Float64Array.from({ length: columns }, (__, i) => +(i === j)));
    const dot = (x, y) => { let s = 0; for (let i = 0; i < x.length; i++) s += x[i] * y[i]; return s; };
    const turn = (x, y, c, s) => {
      for (let i = 0; i < x.length; i++) { const a = x[i], b = y[i]; x[i] = c * a - s * b; y[i] = s * a + c * b; }
    };
    const none = 1e-30 * A.reduce((s, x) => s + dot(x, x), 0);
    for (let sweep = 0, moved = true; moved && sweep < 60; sweep++) {
      moved = false;
      for (let p = 0; p < columns; p++) for (let q = p + 1; q < columns; q++) {
        const x = dot(A[p], A[p]), y = dot(A[q], A[q]), z = dot(A[p], A[q]);
        if (Math.abs(z) <= 1e-14 * Math.sqrt(x * y) || Math.abs(z) <= none) continue;
        moved = true;
        const zeta = (y - x) / (2 * z), t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta)), c = 1 / Math.hypot(1, t);
        turn(A[p], A[q], c, c * t);
        turn(V[p], V[q], c, c * t);
      }
    }
    const length = A.map((x) => Math.sqrt(dot(x, x))), order = [...length.keys()].sort((i, j) => length[j] - length[i]).slice(0, Math.min(rows, columns));
    return { sigma: order.map((j) => length[j]), pairs: order.map((j) => [A[j], V[j]]) };
  }

  let serial = 0;
  // The frame of a widget: title, controls, presets and reset, picture, a sentence for
  // everybody, caption. `keys` are the model's names that the reader may change;
  // `draw(ui)` shows the present state and calls ui.say(sentence).
  // Where the model holds a prediction, the reader commits to a guess first.
  function frame({ model, el, keys, draw }) {
    dress();
    const id = `hra-${++serial}`, ask = model.get("predict") || {};
    const marks = model.get("marks") || {}, presets = model.get("presets") || {};
    const first = Object.fromEntries(keys.map((k) => [k, model.get(k)]));
    const sync = [], set = (values) => {
      for (const k in values) model.set(k, values[k]);
      model.save_changes();
    };
    const controls = make("div", { class: "hra-controls" }), buttons = make("div", { class: "hra-buttons" });
    const picture = make("div", { class: "hra-picture" });
    const status = make("p", { role: "status", "aria-live": "polite" });
    const title = model.get("title") || "", caption = model.get("caption") || "";
    const root = make("figure", { class: "hra-frame", "aria-label": title || null }, title && make("p", { class: "hra-title" }, title));
    const button = (label, press) => {
      const b = make("button", { type: "button" }, label);
      b.addEventListener("click", press);
      return b;
    };
    const ui = { id, root, controls, buttons, picture, set, button, guess: null,
      say(sentence) { if (status.textContent !== sentence) status.textContent = sentence; },
      // one slider; its positions are low ... high, `to` and `from` turn them into values
      slider(key, label, low, high, { step = 1, show = String, to = (v) => v, from = (v) => v } = {}) {
        const out = make("output"), input = make("input", { type: "range", id: `${id}-${key}`, min: low, max: high, step, "data-lm-suppress-shortcuts": "true" });
        const box = make("div", {}, make("label", { for: input.id }, label), " ", out, input);
        const named = Object.entries(marks[key] || {});
        const row = named.map(([name, v]) => [button(name, () => set({ [key]: v })), v]);
        if (row.length) box.append(make("div", { class: "hra-buttons", role: "group", "aria-label": `Marks of ${label}` }, ...row.map(([b]) => b)));
        input.addEventListener("input", () => set({ [key]: to(+input.value) }));
        sync.push(() => {
          const v = model.get(key);
          input.value = from(v);
          out.textContent = show(v);
          input.setAttribute("aria-valuetext", out.textContent);
          row.forEach(([b, at]) => b.setAttribute("aria-pressed", String(at === v)));
        });
        controls.append(box);
        return box;
      },
      // one of `options`: texts, or [value, text]
      choices(key, label, options) {
        const pairs = options.map((o) => (Array.isArray(o) ? o : [o, o]));
        const e = make("select", { id: `${id}-${key}` }, ...pairs.map(([, t], i) => make("option", { value: i }, t)));
        e.addEventListener("change", () => set({ [key]: pairs[+e.value][0] }));
        sync.push(() => { e.value = pairs.findIndex(([v]) => v === model.get(key)); });
        const box = make("div", {}, make("label", { for: e.id }, label), e);
        controls.append(box);
        return box;
      },
      start() { if (ask.question) question(); else show(); },
    };
    const redraw = () => { sync.forEach((f) => f()); draw(ui); };

    function show(result) {
      for (const [name, values] of Object.entries(presets)) buttons.append(button(name, () => set(values)));
      if (keys.length) buttons.append(button("Reset", () => set(first)));
      if (result) root.append(result);
      root.append(controls, buttons, picture, status, make("figcaption", {}, caption));
      for (const k of keys) model.on(`change:${k}`, redraw);
      redraw();
    }

    // the guess and the answer on one line
    function scale(guess) {
      const { low, high, answer } = ask, W = 480, f = ask.log ? Math.log10 : (v) => v;
      const X = (v) => 16 + (W - 32) * Math.min(1, Math.max(0, (f(v) - f(low)) / (f(high) - f(low))));
      const at = (v, y, s, fill) => {
        const x = X(v), anchor = x < 90 ? "start" : x > W - 90 ? "end" : "middle";
        return make("g", {}, make("circle", { cx: x, cy: 34, r: 7, fill }), text(x, y, s, { "text-anchor": anchor }));
      };
      return make("svg", { viewBox: `0 0 ${W} 68`, "aria-hidden": "true" },
        make("line", { x1: 16, x2: W - 16, y1: 34, y2: 34, stroke: "currentColor", "stroke-opacity": 0.5 }),
        at(guess, 16, `your guess: ${short(guess)}`, palette.families.sparse), at(answer, 62, `answer: ${short(answer)}`, palette.families["low rank"]));
    }

    function question() {
      const form = make("form", { class: "hra-guess" }), box = make("fieldset", {}, make("legend", {}, ask.question));
      let value = null;
      if (ask.choices) {
        ask.choices.forEach((c, i) => {
          const r = make("input", { type: "radio", name: `${id}-guess`, value: i });
          r.addEventListener("change", () => { value = c; status.textContent = `Your guess: ${c}.`; });
          box.append(make("label", {}, r, ` ${c}`));
        });
        status.textContent = "Choose one, then commit.";
      } else {
        const steps = ask.log ? 200 : Math.round((ask.high - ask.low) / ask.step), part = (i) => i / steps;
        const round = (v) => +(Math.round(v / ask.step) * ask.step).toPrecision(12);
        const to = (i) => round(ask.log ? ask.low * (ask.high / ask.low) ** part(i) : ask.low + i * ask.step);
        const e = make("input", { type: "range", id: `${id}-guess`, min: 0, max: steps, step: 1, "aria-label": "Your guess", "data-lm-suppress-shortcuts": "true" });
        const tell = () => {
          value = to(+e.value);
          status.textContent = `Your guess: ${short(value)}${ask.unit ? ` ${ask.unit}` : ""}.`;
          e.setAttribute("aria-valuetext", short(value));
        };
        e.value = Math.round(steps / 2);
        e.addEventListener("input", tell);
        box.append(e);
        tell();
      }
      form.append(box, status, make("button", { type: "submit" }, "Commit and see"));
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (value === null) { status.textContent = "Choose one first."; return; }
        ui.guess = value;
        const words = make("p", { tabindex: "-1" }, gap(ask, value));
        form.remove();
        show(make("div", { class: "hra-gap" }, words, ask.choices ? null : scale(value)));
        words.focus({ preventScroll: true });
      });
      root.append(form);
    }

    el.append(root);
    return ui;
  }

  // A model that a kernel has opened in this page, by the name that the outputs of its widget carry; page.js waits for it.
  function enlist(model) {
    const models = (globalThis.hraModels ??= new Map()), name = model.get("_live");
    models.set(name, model);
    document.dispatchEvent(new CustomEvent("hra-live", { detail: name }));
    return () => models.delete(name);
  }

  return { make, group, size, short, percent, ms, palette, gap, text, ticks, axes, pixels, svd, frame, enlist };
})();
