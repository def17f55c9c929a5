// Recorded runs, replayed. `base` is base.js, which hra.viz.static puts before this file.
const { make, frame, axes: plot, short, ticks, palette } = base;

const names = ["at0", "at1", "at2"];
const place = (s) => s.axes.reduce((k, [, values], i) => k * values.length + s[names[i]], 0);

function facts(s) {
  const curve = s.curves[place(s)], end = s.ends[place(s)], gaps = {};
  for (const b of s.baselines) if (end !== null && b.end !== null) gaps[b.name] = end - b.end;
  return { recorded: curve !== null, first: curve && curve[1][0], last: curve && curve[1][curve[1].length - 1], end, gaps };
}

// the places along axis `i` through the chosen run
function row(s, i) {
  return s.axes[i][1].map((_, v) => place({ ...s, [names[i]]: v }));
}

function render({ model, el }) {
  const fixed = ["axes", "grids", "curves", "ends", "baselines", "words"];
  const s0 = Object.fromEntries(fixed.map((k) => [k, model.get(k)])), used = names.slice(0, s0.axes.length);
  const state = () => ({ ...s0, ...Object.fromEntries([...used, "along"].map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys: [...used, "along"], draw });
  const numeric = ([, values]) => values.every((v) => typeof v === "number"), some = s0.axes.some(numeric);
  s0.axes.forEach((axis, i) => {
    if (numeric(axis) || !some) ui.slider(names[i], `${axis[0]}:`, 0, axis[1].length - 1, { show: (k) => String(axis[1][k]) });
    else ui.choices(names[i], `${axis[0]}:`, axis[1].map((v, k) => [k, String(v)]));
    model.on(`change:${names[i]}`, () => ui.set({ along: i }));
  });
  const side = make("div", { class: "hra-side" });
  ui.picture.append(side);

  // what all runs need: the highest first point is the top, what is above runs along it
  const all = [...s0.curves, ...s0.baselines.map((b) => b.curve)].filter((c) => c);
  const ys = all.flatMap((c) => c[1]).filter((v) => v !== null), firsts = all.map((c) => c[1][0]).filter((v) => v !== null);
  const xs = s0.grids.flat(), x = [Math.min(...xs), Math.max(...xs)];
  const room = ([a, b]) => [a - 0.06 * (b - a || 1), b + 0.06 * (b - a || 1)];
  const y = room([Math.min(...ys), Math.max(...firsts, Math.min(...ys))]);
  const marked = s0.ends.concat(s0.baselines.map((b) => b.end)).filter((v) => v !== null);
  const low = Math.min(...marked), sorted = [...marked].sort((a, b) => a - b);
  const own = palette.families[s0.words.family], ink = { stroke: "currentColor", "stroke-dasharray": "6 4", "stroke-width": 1.8 };

  function draw() {
    const s = state(), f = facts(s), here = place(s), along = row(s, s.along), [axis, values] = s.axes[s.along];
    const zip = (c) => s.grids[c[0]].map((v, i) => [v, c[1][i]]);
    const a = plot({ x, y, xlabel: s.words.xlabel, ylabel: s.words.ylabel, xticks: [[x[0], short(x[0])], [x[1], short(x[1])]], yticks: ticks(y), W: 430, H: 260 });
    for (const k of along) if (k !== here && s.curves[k]) a.svg.append(a.path(zip(s.curves[k]), { stroke: own, "stroke-opacity": 0.25, "stroke-width": 1.5 }));
    s.baselines.filter((b) => b.curve).forEach((b, k) => {
      const at = a.T + 6 + 18 * k, end = a.W - a.R;
      a.svg.append(a.path(zip(b.curve), ink), a.text(end - 34, at + 4, b.name, { "text-anchor": "end", "font-size": 13 }),
        make("path", { d: `M${end - 28},${at}H${end}`, ...ink }));
    });
    if (s.curves[here]) a.svg.append(a.path(zip(s.curves[here]), { stroke: own, "stroke-width": 3 }));

    // where the runs end, against the axis that was moved last
    const top = Math.max(sorted[Math.floor(0.9 * (sorted.length - 1))], f.end ?? low, ...s.baselines.map((b) => b.end ?? low));
    const range = room([low, top]), many = Math.ceil(values.length / 6), n = values.length;
    const b = plot({ x: n > 1 ? [-0.3, n - 0.7] : [-1, 1], y: range, xlabel: axis, ylabel: s.words.end, W: 430, H: 260,
      xticks: values.map((v, i) => [i, String(v)]).filter((_, i) => i % many === 0), yticks: ticks(range) });
    for (const base of s.baselines) if (base.end !== null) {
      b.svg.append(b.path([[n > 1 ? -0.3 : -1, base.end], [n > 1 ? n - 0.7 : 1, base.end]], ink),
        b.text(b.W - b.R, b.Y(base.end) - 6, base.name, { "text-anchor": "end", "font-size": 13 }));
    }
    b.svg.append(b.path(along.map((k, i) => [i, s.ends[k]]), { stroke: own, "stroke-opacity": 0.5, "stroke-width": 1.5 }));
    along.forEach((k, i) => {
      if (s.ends[k] !== null) b.svg.append(make("circle", { cx: b.X(i), cy: b.Y(s.ends[k]), r: k === here ? 8 : 4, fill: own }));
    });
    side.replaceChildren(a.svg, b.svg);

    const where = s.axes.map(([name, v], i) => `${name} ${v[s[names[i]]]}`).join(", ");
    const fixed = (v) => v.toFixed(Math.abs(v) < 10 ? 3 : 1);
    const gaps = Object.entries(f.gaps).map(([name, g]) => `${Math.abs(g) < 5e-4 ? "equal to" : `${fixed(Math.abs(g))} ${g > 0 ? "above" : "below"}`} ${name}`);
    const said = !f.recorded ? `${where}: not recorded.` : f.end === null ? `${where}: the run diverged.` :
      `${where}: ${s.words.ylabel} from ${f.first === null ? "no number" : fixed(f.first)} to ${f.last === null ? "no number" : fixed(f.last)}; ` +
      `${s.words.end} ${fixed(f.end)}${gaps.length ? `, ${gaps.join(", ")}` : ""}.`;
    ui.say(said);
    a.svg.setAttribute("aria-label", `Curve of the chosen run. ${said}`);
    b.svg.setAttribute("aria-label", `${s.words.end} along ${axis}: ` + along.map((k, i) => `${values[i]}: ${s.ends[k] === null ? "none" : fixed(s.ends[k])}`).join("; "));
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
