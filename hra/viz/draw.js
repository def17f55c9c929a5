// Draw a digit, slide the adapter. `base` is base.js, `vit` vit.js, `sheet` sketch.js: hra.viz.draw puts them before this file.
const { make, axes, frame, group, palette, text } = base;
const STRENGTHS = [-1, -0.5, 0, 0.5, 1, 1.5, 2];
const CSS = `
.hra-draw .hra-side { align-items: flex-start; margin-top: .5rem; }
.hra-draw canvas { display: block; background: #000; border: 1px solid rgba(128,128,128,.7); box-sizing: border-box; }
.hra-draw .hra-paper { width: min(100%, 17.5rem); aspect-ratio: 1; cursor: crosshair; touch-action: none; }
.hra-draw .hra-seen { width: 5.25rem; height: 5.25rem; flex: none; image-rendering: pixelated; }
.hra-draw .hra-see { display: flex; gap: .7rem; align-items: center; font-size: .92em; margin-top: .6rem; }
.hra-draw .hra-buttons { margin: .5rem 0; }
.hra-draw .hra-ten { display: grid; grid-template-columns: repeat(10, 1fr); gap: .25rem; width: min(100%, 17.5rem); }
.hra-draw .hra-ten button { min-width: 1.5rem; padding: .1rem 0; }
.hra-draw .hra-side p:first-child { margin-top: 0; }`;

const best = (p) => p.indexOf(Math.max(...p));
const tenth = (v) => String(Math.round(10 * v) / 10).replace("-", "−");

function render({ model, el }) {
  const get = (k) => model.get(k), files = get("files"), kinds = get("kinds"), degrees = get("degrees");
  const named = { plain: "as it is", rotated: `turned left by ${degrees}°`, inverted: "inverted" };
  const right = new Map();  // "task kind α keep" → [plain, shifted] of the stored digits
  let net = null, digits = null, change = null, W = null, key = "", problem = "", job = 0, sweep = null;
  let digit = null, turn = 0, said = null;

  // ---- the paper
  const paper = sheet.sketch((image) => { digit = image; answer(); });
  const seen = make("canvas", { class: "hra-seen", width: vit.SIDE, height: vit.SIDE, role: "img", "data-paper": "digit" });
  const bars = make("svg", { viewBox: "0 0 300 268", role: "img" });
  const counts = make("p", {}), chart = make("svg", { role: "img" });
  const ui = frame({ model, el, keys: ["task", "kind", "alpha", "keep", "shown"], draw });
  ui.root.classList.add("hra-draw");
  ui.root.append(make("style", {}, CSS));

  function take(label) {  // a stored digit, another one each time
    const same = digits.filter((d) => d.label === label);
    paper.show(same[turn++ % same.length].image);
  }
  const ten = make("div", { class: "hra-ten", role: "group", "aria-label": "A handwritten digit" },
    ...Array.from({ length: 10 }, (_, c) => ui.button(String(c), () => load().then(() => digits && take(c)))));
  ui.picture.append(make("div", { class: "hra-side" },
    make("div", {}, paper.paper, make("div", { class: "hra-buttons" }, ui.button("Clear", paper.clear), "or take a handwritten one:"), ten),
    make("div", {}, bars, make("div", { class: "hra-see" }, seen,
      make("span", {}, "What the model sees: the digit sized and centred as the ones it was trained on, then shown as you choose.")))));

  // ---- the controls
  const about = (kind = get("kind")) => kinds[get("task")][kind];  // {ranks: 0 where the change is a list of entries, numbers at each `keep`}
  const family = (kind) => about(kind)?.family ?? "full";
  const kept = (v) => (about()?.ranks ? `rank ${vit.share(about().ranks, v)} of ${about().ranks}` : v === 8 ? "all entries" : `the largest ${v}/8 of the entries`);
  ui.choices("task", "Adapter for:", Object.keys(kinds).map((t) => [t, `${t} digits`]));
  ui.choices("kind", "Kind of adapter:", [...new Set(Object.values(kinds).flatMap(Object.keys))]);
  ui.choices("shown", "Show the digit:", ["plain", ...Object.keys(kinds)].map((t) => [t, named[t]]));
  ui.slider("alpha", "Strength α:", -10, 20, { show: tenth, to: (v) => v / 10, from: (v) => Math.round(10 * v) });
  ui.slider("keep", "Kept:", 0, 8, { show: kept });

  // ---- loading
  let loading = null;
  function load() {
    return loading ??= Promise.all([sheet.file(files.model, model), sheet.file(files.digits, model)]).then(([m, d]) => {
      net = vit.readModel(m);
      digits = vit.readImages(d);
      if (!digit) take(get("sample"));
      draw();
      problem = "";
    }).catch(fail);
  }
  const fail = (e) => { loading = null; problem = e.message; say(); };
  if (globalThis.IntersectionObserver) {
    const watch = new IntersectionObserver((seen) => { if (seen.some((s) => s.isIntersecting)) { watch.disconnect(); load(); } });
    watch.observe(ui.root);
  } else setTimeout(load);

  // ---- weights, answers, counts
  const setting = (alpha = get("alpha"), kind = get("kind")) =>
    alpha && get("keep") ? `${get("task")} ${kind} ${tenth(alpha)} ${get("keep")}` : `${get("task")} none`;

  function draw() {
    if (ui.picture.nextSibling !== ui.controls) {
      ui.controls.before(ui.picture);
      const status = ui.root.querySelector("[role=status]");
      ui.buttons.after(make("div", { class: "hra-side" }, make("div", {}, status, counts), chart));
    }
    if (!about()) return ui.set({ kind: Object.keys(kinds[get("task")])[0] });
    const wanted = files[`${get("task")} ${get("kind")}`];
    if (net && change?.file !== wanted) {
      W = null;
      sheet.file(wanted, model).then((bytes) => {
        if (wanted !== files[`${get("task")} ${get("kind")}`]) return;
        change = Object.assign(vit.readChange(bytes), { file: wanted });
        weigh();
      }).catch(fail);
    } else if (net) return weigh();
    answer();
    plot();
  }
  function weigh() {
    const now = `${change.file} ${setting()}`;
    if (now !== key || !W) W = vit.adapted(net, [{ change, alpha: get("alpha"), keep: get("keep") }]);
    key = now;
    if (get("alpha") !== sweep) sweep = null;
    answer();
    plot();
    count();
  }
  let first = [];  // what the pretrained model says to the digit shown
  function answer() {
    const shown = digit && vit.shift(get("shown"), digit, degrees);
    if (first[0] !== digit || first[1] !== get("shown")) first = [digit, get("shown"), digit && net && ask(net.W, shown)];
    said = shown && W ? [first[2], ask(W, shown)] : null;
    if (shown) sheet.grey(seen, shown); else seen.getContext("2d").clearRect(0, 0, vit.SIDE, vit.SIDE);
    seen.setAttribute("aria-label", digit ? `The digit as the model sees it: ${named[get("shown")]}` : "No digit yet");
    paint();
    say();
  }
  const ask = (weights, image) => vit.softmax(vit.forward(net.config, weights, image));

  function count() {  // this setting, then the pretrained model: a few digits between two frames
    const mine = ++job, todo = [[setting(), W], [setting(0), net.W]].filter(([k]) => !right.has(k));
    let at = 0, found = [0, 0];
    const step = () => {
      if (mine !== job) return;
      if (!todo.length) return next();
      const end = performance.now() + 12;
      do {
        const { label, image } = digits[at++];
        [image, vit.shift(get("task"), image, degrees)].forEach((x, i) => { found[i] += best(vit.forward(net.config, todo[0][1], x)) === label; });
      } while (at < digits.length && performance.now() < end);
      tell(at);
      if (at === digits.length) {
        right.set(todo.shift()[0], found);
        [at, found] = [0, [0, 0]];
        tell(0);
        plot();
        say();
      }
      setTimeout(step);
    };
    tell(0);
    setTimeout(step, sweep === null ? 150 : 0);
  }
  function next() {
    const after = sweep === null ? [] : STRENGTHS.filter((a) => a > sweep);
    sweep = after.length ? after[0] : null;
    if (sweep !== null) ui.set({ alpha: sweep });
  }
  ui.buttons.append(ui.button("Sweep α from −1 to 2", () => load().then(() => {
    sweep = STRENGTHS[0];
    if (get("alpha") === sweep) draw(); else ui.set({ alpha: sweep });
  })));

  // ---- what is shown
  function paint() {
    const fill = palette.families[family()], weight = (c) => (said && best(said[1]) === c ? 700 : 400);
    bars.replaceChildren(...Array.from({ length: 10 }, (_, c) => make("g", {},
      text(4, 24 * c + 17, c, { "font-weight": weight(c) }),
      make("rect", { x: 22, y: 24 * c + 3, width: said ? Math.max(1, 218 * said[1][c]) : 1, height: 13, fill }),
      make("rect", { x: 22, y: 24 * c + 17, width: said ? Math.max(1, 218 * said[0][c]) : 1, height: 4, fill: palette.baseline }),
      text(296, 24 * c + 17, said ? `${Math.round(100 * said[1][c])} %` : "", { "text-anchor": "end", "font-weight": weight(c) }))),
    make("rect", { x: 22, y: 249, width: 14, height: 13, fill }), text(42, 260, "with the adapter", { "font-size": 13 }),
    make("rect", { x: 156, y: 254, width: 14, height: 4, fill: palette.baseline }), text(176, 260, "pretrained", { "font-size": 13 }));
    bars.setAttribute("aria-label", said ? `Probabilities with the adapter: ${said[1].map((v, c) => `${c}: ${Math.round(100 * v)} %`).join(", ")}` : "No answer yet");
  }
  function tell(at) { counts.textContent = at ? `Counting: ${at} of ${digits.length}` : ""; }
  function plot() {
    const t = get("task"), { svg, X, Y, path } = axes({ x: [-1, 2], y: [0, 100], W: 360, H: 240, L: 40, xlabel: "strength α", ylabel: "right of 100",
      xticks: [-1, 0, 1, 2].map((v) => [v, tenth(v)]), yticks: [0, 50, 100].map((v) => [v, v]) });
    const legend = text(346, 15, "", { "text-anchor": "end" });
    legend.append(make("tspan", {}, `● ${t}  ○ plain `), ...Object.keys(kinds[t]).map((kind) =>
      make("tspan", { fill: palette.families[family(kind)], "font-weight": kind === get("kind") ? 700 : 400 }, ` ${kind}`)));
    for (const kind of Object.keys(kinds[t]).sort((a, b) => (a === get("kind")) - (b === get("kind")))) {
      const stroke = palette.families[family(kind)], opacity = kind === get("kind") ? 1 : 0.45;
      const points = Array.from({ length: 31 }, (_, i) => [i / 10 - 1, right.get(setting(i / 10 - 1, kind))]).filter(([, n]) => n);
      for (const i of [0, 1])
        svg.append(make("g", { opacity }, path(points.map(([a, n]) => [a, n[i]]), { stroke, "stroke-dasharray": i ? null : "5 4" }),
          ...points.map(([a, n]) => make("circle", { cx: X(a), cy: Y(n[i]), r: 4.5, fill: i ? stroke : "var(--pst-color-background, var(--jp-layout-color0, canvas))", stroke, "stroke-width": 2 }))));
    }
    svg.append(legend);
    chart.setAttribute("viewBox", svg.getAttribute("viewBox"));
    chart.setAttribute("aria-label", "Stored digits right, of 100, against strength, as far as they have been counted");
    chart.replaceChildren(...svg.childNodes);
  }
  function say() {
    const a = right.get(setting()), b = right.get(setting(0)), t = get("task"), alpha = tenth(get("alpha"));
    const numbers = group(about().numbers[get("keep")]);
    const what = `${get("kind")} for ${t} digits, ${kept(get("keep"))} (${numbers} numbers), at α = ${alpha}`;
    if (problem) return ui.say(`The model could not be loaded: ${problem}. Chosen: ${what}.`);
    if (!W) return ui.say(`${net ? "The adapter" : `The model (${get("megabytes")} MB)`} is being loaded. Chosen: ${what}.`);
    const top = said && best(said[1]);
    ui.say((said ? `The model says ${top} (${Math.round(100 * said[1][top])} %); pretrained it says ${best(said[0])}. ` : "No digit yet: draw one or take one. ") +
      `With ${what}, ` + (a ? `it gets ${a[1]} of 100 ${t} digits right and ${a[0]} of 100 plain ones` : "the stored digits are being counted") +
      (a && b ? `; pretrained ${b[1]} and ${b[0]}.` : "."));
  }
  ui.start();
}

export default { render, needs_kernel: sheet.needs_kernel };
