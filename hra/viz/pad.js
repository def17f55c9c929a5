// Two adapters on a pad. `base` is base.js, `vit` vit.js, `sheet` sketch.js: hra.viz.pad puts them before this file.
const { make, frame, palette, text } = base;
const LOW = -1, HIGH = 2, P = 252, L = 34, T = 24;  // strengths; the pad's side, its left and top, in units
const TEN = 10;  // steps of a strength
const CSS = `
.hra-two .hra-side { align-items: flex-start; margin-top: .5rem; }
.hra-two canvas { display: block; background: #000; border: 1px solid rgba(128,128,128,.7); box-sizing: border-box; }
.hra-two .hra-paper { width: min(100%, 12rem); aspect-ratio: 1; cursor: crosshair; touch-action: none; }
.hra-two .hra-map { touch-action: pan-y; cursor: crosshair; }
.hra-two .hra-seen { width: 4.2rem; height: 4.2rem; image-rendering: pixelated; }
.hra-two table { border-collapse: collapse; font-size: .92em; margin: 0; color: inherit; }
.hra-two th, .hra-two td { padding: .15rem .5rem .15rem 0; text-align: left; font-weight: 400; vertical-align: middle; }
.hra-two .hra-ten { display: grid; grid-template-columns: repeat(10, 1fr); gap: .25rem; width: min(100%, 17.5rem); }
.hra-two .hra-ten button { min-width: 1.5rem; padding: .1rem 0; }`;

const tenth = (v) => String(Math.round(TEN * v) / TEN).replace("-", "−");
const best = (p) => p.indexOf(Math.max(...p));

// what was counted at the grid point nearest to the pad's, alone, and before
function facts({ strengths, counts, kind, one, two }) {
  const n = strengths.length, step = strengths[1] - strengths[0];
  const near = (v) => Math.min(n - 1, Math.max(0, Math.floor((v - strengths[0]) / step + 0.5)));
  const at = (i, j) => counts[kind][i * n + j], i = near(one), j = near(two), zero = near(0), unit = near(1);
  return { at: [strengths[i], strengths[j]], right: at(i, j), alone: [at(unit, zero)[0], at(zero, unit)[1]], before: at(zero, zero) };
}

// W0 + Σ α ΔW from the weights with each change alone at α = 1
function mixed(W0, alone, alphas) {
  const W = { ...W0 };
  for (const name in W0) {
    const [u, v] = alone.map((w) => w[name].data), old = W0[name].data, [a, b] = alphas;
    if (u === old && v === old) continue;
    const data = new Float32Array(old.length);
    for (let i = 0; i < old.length; i++) data[i] = old[i] + a * (u[i] - old[i]) + b * (v[i] - old[i]);
    W[name] = { shape: W0[name].shape, data };
  }
  return W;
}

function render({ model, el }) {
  const get = (k) => model.get(k), files = get("files"), tasks = Object.keys(get("kinds")), kinds = Object.keys(get("kinds")[tasks[0]]);
  const strengths = get("strengths"), counts = get("counts"), degrees = get("degrees"), n = strengths.length, cell = P / n;
  const state = () => ({ strengths, counts, kind: get("kind"), one: get("one"), two: get("two") });
  let net = null, digits = null, changes = null, W = null, alone = [], digit = null, turn = 0, problem = "";
  const ui = frame({ model, el, keys: ["kind", "one", "two"], draw });
  ui.root.classList.add("hra-two");
  ui.root.append(make("style", {}, CSS));
  const colour = () => palette.families[get("kinds")[tasks[0]][get("kind")].family];

  // ---- controls: the pad itself, and a slider for each strength
  const to = (v) => v / TEN, from = (v) => Math.round(TEN * v);
  ui.choices("kind", "Kind of adapter:", kinds);
  ui.slider("one", `α₁, ${tasks[0]}:`, TEN * LOW, TEN * HIGH, { show: tenth, to, from });
  ui.slider("two", `α₂, ${tasks[1]}:`, TEN * LOW, TEN * HIGH, { show: tenth, to, from });
  const clip = (v) => Math.min(HIGH, Math.max(LOW, Math.round(TEN * v) / TEN));
  const X = (v) => L + cell * ((v - LOW) / (strengths[1] - strengths[0]) + 0.5), Y = (v) => T + P - (X(v) - L);
  const maps = tasks.map((task, k) => {
    const svg = make("svg", { class: "hra-map", viewBox: `0 0 ${P + L + 4} ${P + T + 36}`, role: "application", tabindex: 0,
      "aria-roledescription": "pad", "data-lm-suppress-shortcuts": "true" });
    const go = (e) => {
      const box = svg.getBoundingClientRect(), u = (P + L + 4) / box.width;
      const value = (p) => LOW + (p / cell - 0.5) * (strengths[1] - strengths[0]);
      ui.set({ one: clip(value((e.clientX - box.left) * u - L)), two: clip(value(T + P - (e.clientY - box.top) * u)) });
    };
    svg.addEventListener("pointerdown", (e) => { e.preventDefault(); svg.focus({ preventScroll: true }); svg.setPointerCapture(e.pointerId); go(e); });
    svg.addEventListener("pointermove", (e) => { if (svg.hasPointerCapture(e.pointerId)) go(e); });
    svg.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[e.key];
      if (!step) return;
      e.preventDefault();
      const by = e.shiftKey ? 5 : 1;
      ui.set({ one: clip(get("one") + by * step[0] / TEN), two: clip(get("two") + by * step[1] / TEN) });
    });
    return svg;
  });
  function paint(k) {
    const fill = colour(), f = facts(state()), parts = [text(L, 15, `${tasks[k]} digits right, of 100`)];
    counts[get("kind")].forEach((pair, p) => {
      const x = L + cell * Math.floor(p / n), y = T + P - cell * (p % n + 1);
      parts.push(make("rect", { x, y, width: cell - 1, height: cell - 1, fill, "fill-opacity": (0.02 + 0.6 * (pair[k] / 100) ** 2).toFixed(3) }),
        text(x + cell / 2, y + cell / 2 + 5, pair[k], { "text-anchor": "middle" }));
    });
    strengths.forEach((v, i) => { if (i % 2 === 0) parts.push(text(X(v), T + P + 15, tenth(v), { "text-anchor": "middle", "font-size": 13 }),
      text(L - 5, Y(v) + 4, tenth(v), { "text-anchor": "end", "font-size": 13 })); });
    parts.push(text(L + P / 2, T + P + 32, `α₁, ${tasks[0]}`, { "text-anchor": "middle" }), text(2, T + P / 2 + 24, "α₂"),
      make("circle", { cx: X(get("one")), cy: Y(get("two")), r: 10, fill: "none", stroke: "currentColor", "stroke-width": 3 }));
    maps[k].replaceChildren(...parts);
    maps[k].setAttribute("aria-label", `Strengths: left and right move α₁, up and down α₂. Now ${tenth(get("one"))} and ${tenth(get("two"))}: ` +
      `${f.right[k]} of 100 ${tasks[k]} digits right.`);
  }

  // ---- the digit
  const paper = sheet.sketch((image) => { digit = image; answer(); });
  const take = (label) => { const same = digits.filter((d) => d.label === label); paper.show(same[turn++ % same.length].image); };
  const ten = make("div", { class: "hra-ten", role: "group", "aria-label": "A handwritten digit" },
    ...Array.from({ length: 10 }, (_, c) => ui.button(String(c), () => load().then(() => digits && take(c)))));
  const seen = tasks.map((task) => make("canvas", { class: "hra-seen", width: vit.SIDE, height: vit.SIDE, role: "img", "data-paper": "digit", "aria-label": `The digit ${task}, as the model sees it` }));
  const cells = tasks.map(() => [make("td"), make("td")]);
  const answers = make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "shown"), make("th", { scope: "col" }, "the digit"), make("th", { scope: "col" }, "its adapter alone"), make("th", { scope: "col" }, "both, as on the pad"))),
    make("tbody", {}, ...tasks.map((task, k) => make("tr", {}, make("th", { scope: "row" }, task), make("td", {}, seen[k]), ...cells[k]))));
  ui.picture.append(make("div", { class: "hra-side" }, ...maps.map((m) => make("div", {}, m))),
    make("div", { class: "hra-side" }, make("div", {}, paper.paper, make("div", { class: "hra-buttons" }, ui.button("Clear", paper.clear), "or take a handwritten one:"), ten), make("div", {}, answers)));

  let loading = null;
  function load() {
    return loading ??= Promise.all([files.model, files.digits].map((f) => sheet.file(f, model))).then(([m, d]) => {
      net = vit.readModel(m);
      digits = vit.readImages(d);
      if (!digit) take(get("sample"));
      draw();
    }).catch(fail);
  }
  const fail = (e) => { loading = null; problem = e.message; say(); };
  if (globalThis.IntersectionObserver) {
    const watch = new IntersectionObserver((s) => { if (s.some((e) => e.isIntersecting)) { watch.disconnect(); load(); } });
    watch.observe(ui.root);
  } else setTimeout(load);

  function draw() {
    [0, 1].forEach(paint);
    const kind = get("kind");
    if (net && changes?.kind !== kind) {
      changes = null; W = null;
      Promise.all(tasks.map((t) => sheet.file(files[`${t} ${kind}`], model))).then((all) => {
        if (get("kind") !== kind) return;
        changes = Object.assign(all.map(vit.readChange), { kind });
        last = [];
        alone = changes.map((change) => vit.adapted(net, [{ change, alpha: 1 }]));
        weigh();
      }).catch(fail);
    } else if (changes) return soon();
    say();
  }
  let pending = false, again = false;
  function soon() {  // at once, then once a frame, however fast the ring is dragged
    if (pending) { again = true; return; }
    pending = true;
    weigh();
    requestAnimationFrame(() => { pending = false; if (again && changes) soon(); again = false; });
  }
  function weigh() {
    const start = performance.now();
    W = mixed(net.W, alone, [get("one"), get("two")]);
    answer();
    ui.root.dataset.took = (performance.now() - start).toFixed(1);  // ms, for the check of the site
  }
  let said = [], last = [];  // what each adapter alone says is asked once a digit
  function answer() {
    const ask = (weights, image) => vit.softmax(vit.forward(net.config, weights, image));
    const same = last[0] === digit && last[1] === changes;
    said = tasks.map((task, k) => {
      const shown = digit && vit.shift(task, digit, degrees);
      if (shown) sheet.grey(seen[k], shown); else seen[k].getContext("2d").clearRect(0, 0, vit.SIDE, vit.SIDE);
      if (!shown || !W) { cells[k].forEach((c) => { c.textContent = ""; }); return null; }
      const both = [same ? last[2 + k] : ask(alone[k], shown), ask(W, shown)];
      both.forEach((p, i) => { cells[k][i].textContent = `${best(p)} (${Math.round(100 * p[best(p)])} %)`; });
      last[2 + k] = both[0];
      return best(both[1]);
    });
    if (W) last.splice(0, 2, digit, changes);
    say();
  }
  function say() {
    const f = facts(state()), s = `α₁ = ${tenth(get("one"))}, α₂ = ${tenth(get("two"))}`;
    const stored = `Counted at α₁ = ${tenth(f.at[0])}, α₂ = ${tenth(f.at[1])}: ${tasks.map((t, k) => `${f.right[k]} of 100 ${t} digits right`).join(" and ")}; ` +
      `each adapter alone ${f.alone.join(" and ")}, without adapters ${f.before.join(" and ")}.`;
    const now = problem ? `The model could not be loaded: ${problem}. ` : !W ? `${s}; the model (${get("megabytes")} MB) is being loaded. ` :
      digit && said.every((c) => c != null) ? `With both at ${s} the digit is read as ${tasks.map((t, k) => `${said[k]} when ${t}`).join(", ")}. ` : `${s}; no digit yet: draw one or take one. `;
    ui.say(now + stored);
  }
  ui.start();
}

export default { render, facts, mixed, needs_kernel: sheet.needs_kernel };  // so that a test holds them equal to the library
