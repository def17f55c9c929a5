// MoRA's operators. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, frame, text, palette } = base;
const NAMES = ["truncation", "sharing", "decoupling", "rotation"];

function facts(s) {
  const [d_out, d_in] = s.layers[s.layer], r = Math.min(s.r, d_out, d_in), least = Math.min(d_out, d_in);
  let n = Math.floor(Math.sqrt((d_in + d_out) * r));
  if (s.operator === "rotation") n -= n % 2;
  const found = { r, r_hat: n, lora: r * (d_out + d_in) };
  if (n < 1 || (s.operator === "truncation" && n > least)) return { ...found, trained: null };
  const n_out = Math.ceil(d_out / n), n_in = Math.ceil(d_in / n), chunks = ["decoupling", "rotation"].includes(s.operator);
  const cut = chunks && n_out < n_in && !s.fold;
  const ones = { truncation: 1, sharing: n_out * n_in }[s.operator] || (cut ? n_out : Math.max(n_out, n_in));
  const reach = s.operator === "truncation" ? n / d_in : cut ? Math.min(1, n_out * n / d_in) : 1;
  return { ...found, trained: n * n, n_out, n_in, ones, rank: chunks ? least : Math.min(n, least), reach };
}

// does chunk i of the input reach chunk o of the output?
function reaches(s, f, o, i) {
  if (s.operator === "truncation") return o === 0 && i === 0;
  if (s.operator === "sharing") return true;
  const n = s.fold ? Math.min(f.n_out, f.n_in) : f.n_in;
  return o % n === i % n;
}

function render({ model, el }) {
  const layers = model.get("layers"), keys = ["layer", "operator", "r", "fold"];
  const state = () => ({ layers, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw });
  ui.choices("layer", "Layer, d_out × d_in:", Object.keys(layers));
  ui.choices("operator", "Operator:", NAMES);
  ui.slider("r", "LoRA's rank r:", 0, 8, { show: group, to: (v) => 2 ** v, from: Math.log2 });
  ui.choices("fold", "Chunks beyond the output:", [[false, "dropped, as published"], [true, "folded onto the others"]]);
  const svg = make("svg", { role: "img", style: "max-width:26rem" });
  ui.picture.append(svg);
  const square = palette.families.square;

  function draw() {
    const s = state(), f = facts(s), [d_out, d_in] = layers[s.layer];
    const big = Math.max(d_out, d_in), P = 300, L = 34, T = 24, unit = P / big, H = unit * d_out, W = unit * d_in;
    const nodes = [text(L + W / 2, 16, `inputs: ${group(d_in)}`, { "text-anchor": "middle" }),
      make("rect", { x: L, y: T, width: W, height: H, fill: "none", stroke: "currentColor", "stroke-opacity": 0.6 }),
      text(0, 0, `outputs: ${group(d_out)}`, { "text-anchor": "middle", transform: `translate(16 ${T + Math.max(H, 90) / 2}) rotate(-90)` })];
    svg.setAttribute("viewBox", `0 0 ${Math.max(L + W, 150) + 8} ${T + Math.max(H, 90) + 12}`);
    let said;
    if (f.trained === null) {
      said = s.operator === "truncation" ? `r = ${group(f.r)} gives r̂ = ${group(f.r_hat)}, more than the ${group(Math.min(d_out, d_in))} that truncation can use here.`
        : `r̂ = ${f.r_hat}: a rotation needs pairs of inputs.`;
    } else {
      const n = f.r_hat, a = Math.floor(n / 4), b = Math.floor(n / 3), half = n / 2;  // the number of M that is followed
      for (let o = 0; o < f.n_out; o++) for (let i = 0; i < f.n_in; i++) {
        if (!reaches(s, f, o, i)) continue;
        const x = L + unit * n * i, y = T + unit * n * o, w = Math.min(unit * n, L + W - x), h = Math.min(unit * n, T + H - y);
        nodes.push(make("rect", { x, y, width: w, height: h, fill: square, "fill-opacity": 0.28, stroke: square, "stroke-width": n * unit > 8 ? 1 : 0.3 }));
        const turn = s.operator === "rotation" ? i * 10000 ** (-2 * (b % half) / n) : 0;
        const marks = [[b, Math.abs(Math.cos(turn))]];
        if (s.operator === "rotation") marks.push([b < half ? b + half : b - half, Math.abs(Math.sin(turn))]);
        for (const [column, strength] of marks) {
          const side = Math.max(unit, 3), u = x + unit * column, v = y + unit * a;
          if (strength > 0.03 && u < L + W - 0.5 && v < T + H - 0.5) nodes.push(make("rect", { x: u, y: v, width: side, height: side, fill: "currentColor", "fill-opacity": strength }));
        }
      }
      said = `${s.operator}: M is ${group(n)} × ${group(n)}, ${group(f.trained)} numbers; LoRA of rank ${group(f.r)} has ${group(f.lora)}. ` +
        `ΔW holds ${f.ones === 1 ? "one copy" : `${group(f.ones)} copies`} of M${s.operator === "rotation" ? ", each turned by its chunk's angles" : ""} ` +
        `and has rank ${group(f.rank)} of ${group(Math.min(d_out, d_in))}, LoRA's ${group(f.r)}. ` +
        (f.reach < 1 ? `${Math.round(100 * f.reach)} % of the inputs reach the output.` : "Every input reaches the output.");
    }
    svg.replaceChildren(...nodes);
    ui.say(said);
    svg.setAttribute("aria-label", `The chunks of ΔW that hold M, and one number of M in each. ${said}`);
  }
  ui.start();
}

export default { render, facts, reaches };  // facts, reaches: so that a test holds them equal to the library
