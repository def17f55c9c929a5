// Two small adapters by hand. `base` is base.js, which hra.viz.static puts before this file.
const { make, frame, palette } = base;
const N = 4, SIGNS = "-0+", NEXT = { "0": "+", "+": "-", "-": "0" };

function erf(x) {  // to 1.5e-7: Abramowitz and Stegun, 7.1.26
  const z = Math.abs(x), t = 1 / (1 + 0.3275911 * z);
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * Math.exp(-z * z);
  return x < 0 ? tail - 1 : 1 - tail;
}
const SIGMA = { identity: (z) => z, ReLU: (z) => Math.max(0, z), GELU: (z) => z * (1 + erf(z / Math.SQRT2)) / 2 };

const read = (rows) => rows.split(" ").map((row) => [...row].map((c) => SIGNS.indexOf(c) - 1));

function facts({ a, b, z, activation }) {
  const A = read(a), B = read(b), s = SIGMA[activation], all = [...Array(N).keys()];
  const product = all.flatMap((j) => all.map((k) => all.reduce((t, i) => t + A[i][j] * B[i][k], 0)));
  const sum = (row) => row.reduce((t, v) => t + v, 0), u = A.map(sum), v = B.map(sum);
  const both = all.map((i) => s(z + u[i] + v[i]) - s(z)), alone = all.map((i) => s(z + u[i]) + s(z + v[i]) - 2 * s(z));
  return { product, awor: product.filter((p) => p === 0).length / (N * N), awom: Math.hypot(...product), a: u, b: v, both, alone,
    cross: both.map((p, i) => p - alone[i]) };
}

const CSS = `
.hra-cross .hra-side > * { flex: 0 1 auto; }
.hra-cross .hra-entries { display: grid; grid-template-columns: repeat(4, 2.1rem); gap: 2px; }
.hra-cross .hra-entries > * { height: 2.1rem; min-width: 0; padding: 0; margin: 0; box-sizing: border-box; display: grid; place-items: center; border-radius: 2px;
  border: 1px solid rgba(128,128,128,.6); line-height: 1; }
.hra-cross table { border-collapse: collapse; margin: .4rem 0 0; color: inherit; font-variant-numeric: tabular-nums; }
.hra-cross th, .hra-cross td { padding: .15rem .7rem .15rem 0; text-align: right; font-weight: 400; }
.hra-cross th:first-child { text-align: left; }
.hra-cross .hra-hit { font-weight: 700; }`;

const whole = (v) => String(+v.toFixed(2)).replace("-", "−");

function render({ model, el }) {
  const keys = ["a", "b", "z", "activation"], state = () => Object.fromEntries(keys.map((k) => [k, model.get(k)]));
  const ui = frame({ model, el, keys, draw });
  ui.root.classList.add("hra-cross");
  ui.root.append(make("style", {}, CSS));
  ui.choices("activation", "Activation σ:", Object.keys(SIGMA));
  ui.slider("z", "z, every output of W before the adapters:", -12, 12, { show: whole, to: (v) => v / 4, from: (v) => Math.round(4 * v) });
  const fill = (v) => (v ? `color-mix(in srgb, ${v > 0 ? palette.families["low rank"] : palette.families.sparse} ${Math.min(80, 35 + 15 * Math.abs(v))}%, transparent)` : "transparent");

  function painted(key, name) {
    const grid = make("div", { class: "hra-entries", role: "group", "aria-label": `Entries of ${name}`, "data-lm-suppress-shortcuts": "true" });
    const buttons = Array.from({ length: N * N }, (_, k) => {
      const e = make("button", { type: "button", tabindex: k ? -1 : 0 }), at = k + Math.floor(k / N);  // a blank after each row
      e.addEventListener("click", () => { const s = model.get(key); ui.set({ [key]: s.slice(0, at) + NEXT[s[at]] + s.slice(at + 1) }); });
      e.addEventListener("focus", () => buttons.forEach((o) => o.setAttribute("tabindex", o === e ? 0 : -1)));
      e.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step) return;
        event.preventDefault();
        const i = Math.floor(k / N) + step[0], j = k % N + step[1];
        if (i >= 0 && i < N && j >= 0 && j < N) buttons[i * N + j].focus();
      });
      return e;
    });
    grid.append(...buttons);
    return [make("div", {}, make("p", {}, name), grid), (rows) => read(rows).flat().forEach((v, k) => {
      buttons[k].textContent = whole(v);
      buttons[k].style.background = fill(v);
      buttons[k].setAttribute("aria-label", `${name}, row ${Math.floor(k / N) + 1}, column ${k % N + 1}: ${whole(v)}`);
    })];
  }
  const [first, showA] = painted("a", "A₁"), [second, showB] = painted("b", "A₂");
  const cells = Array.from({ length: N * N }, () => make("span")), product = make("div", { class: "hra-entries", role: "img" }, ...cells);
  const body = make("tbody");
  const head = ["output", "a = A₁x", "b = A₂x", "sum of each", "together", "cross term"];
  ui.picture.append(make("div", { class: "hra-side" }, first, second, make("div", {}, make("p", {}, "A₁ᵀA₂"), product)),
    make("div", { style: "overflow-x:auto", role: "region", "aria-label": "What the adapters add to each output", tabindex: 0 },
      make("table", {}, make("thead", {}, make("tr", {}, ...head.map((h) => make("th", { scope: "col" }, h)))), body)));

  function draw() {
    const s = state(), f = facts(s);
    showA(s.a); showB(s.b);
    f.product.forEach((v, k) => { cells[k].textContent = whole(v); cells[k].style.background = fill(v); });
    product.setAttribute("aria-label", `The product, by rows: ${f.product.map(whole).join(", ")}`);
    const hit = f.cross.map((c) => Math.abs(c) > 1e-6);
    body.replaceChildren(...f.a.map((_, i) => make("tr", { class: hit[i] ? "hra-hit" : null }, make("th", { scope: "row" }, i + 1),
      ...[f.a[i], f.b[i], f.alone[i], f.both[i], f.cross[i]].map((v) => make("td", {}, whole(v))))));
    const where = hit.flatMap((h, i) => (h ? [i + 1] : []));
    ui.say(`Entries of A₁ᵀA₂ that are not zero: ${f.product.filter((v) => v !== 0).length} of 16; AWOR ${f.awor.toFixed(2)}, AWOM ${f.awom.toFixed(2)}. ` +
      `Through ${s.activation} at z = ${whole(s.z)} the two ` +
      (where.length ? `do not add up at output${where.length > 1 ? "s" : ""} ${where.join(", ")}.` : "add up exactly at every output."));
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
