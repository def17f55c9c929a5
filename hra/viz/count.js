// Numbers trained and numbers drawn. `base` is base.js, which hra.viz.static puts before this file.
const { make, group, size, frame, text, palette } = base;
const RANK = 8;

function facts(s) {
  const [layers, shapes] = s.models[s.model], sum = (f) => layers * shapes.reduce((t, [m, n]) => t + f(m, n), 0);
  const ends = sum((m, n) => m + n), sites = sum(() => 1);
  const high = Math.max(...shapes.map(([m]) => m)), wide = Math.max(...shapes.map(([, n]) => n));
  return {
    LoRA: { trained: s.lora * ends, random: 0, frozen: 0 },
    VeRA: { trained: sum((m) => m) + sites * s.vera, random: 0, frozen: s.vera * (high + wide) },
    NOLA: { trained: 2 * s.nola * sites, random: 2 * s.nola * RANK * ends, frozen: RANK * sum((m, n) => n) },
    PRANC: { trained: s.pranc, random: 2 * s.pranc * sum((m, n) => m * n), frozen: 0 },
  };
}

// 12,345 below a million, then 1.4 million, 23 billion
const words = (v) => {
  if (v < 1e6) return group(v);
  const [unit, name] = v < 1e9 ? [1e6, "million"] : v < 1e12 ? [1e9, "billion"] : [1e12, "trillion"];
  return `${(v / unit).toPrecision(v / unit < 100 ? 2 : 3)} ${name}`;
};

function render({ model, el }) {
  const models = model.get("models"), keys = ["model", "lora", "vera", "nola", "pranc"];
  const state = () => ({ models, ...Object.fromEntries(keys.map((k) => [k, model.get(k)])) });
  const ui = frame({ model, el, keys, draw }), powers = { show: group, to: (v) => 2 ** v, from: Math.log2 };
  ui.choices("model", "Model", Object.keys(models));
  ui.slider("lora", "LoRA, rank r:", 0, 10, powers);
  ui.slider("vera", "VeRA, rank r:", 0, 12, powers);
  ui.slider("nola", "NOLA, k = l:", 0, 12, powers);
  ui.slider("pranc", "PRANC, m:", 0, 16, powers);
  const svg = make("svg", { role: "img", style: "max-width:34rem" });
  ui.picture.append(svg);
  const low = palette.families["low rank"], colours = { LoRA: low, VeRA: low, NOLA: low, PRANC: palette.families.seeded };

  function draw() {
    const s = state(), f = facts(s), W = 460, X = (v) => 2 + (W - 4) * Math.log10(Math.max(v, 1)) / 16, nodes = [];
    let y = 16;
    for (const [name, { trained, random, frozen }] of Object.entries(f)) {
      const more = random ? `draws ${words(random)} a step` : frozen ? `keeps ${words(frozen)} frozen` : "draws none";
      nodes.push(text(0, y, `${name}: trains ${words(trained)}, ${more}`),
        make("rect", { x: 2, y: y + 6, height: 12, width: Math.max(2, X(trained) - 2), fill: colours[name] }),
        make("rect", { x: 2, y: y + 20, height: 8, width: Math.max(0, X(random || frozen) - 2), fill: "none", stroke: colours[name], "stroke-width": 1.5 }));
      y += 50;
    }
    for (const e of [0, 3, 6, 9, 12, 15]) {
      const x = X(10 ** e);
      nodes.push(make("line", { x1: x, x2: x, y1: 22, y2: y - 16, stroke: "currentColor", "stroke-opacity": 0.15 }),
        text(x, y, ["1", "thousand", "million", "billion", "trillion", ""][e / 3], { "text-anchor": e ? "middle" : "start", "font-size": 13 }));
    }
    nodes.push(text(W / 2, y + 22, "numbers: trained (full), drawn at random (hollow)", { "text-anchor": "middle" }));
    svg.setAttribute("viewBox", `0 0 ${W} ${y + 30}`);
    svg.replaceChildren(...nodes);
    const ratio = f.LoRA.trained / f.VeRA.trained, few = ratio >= 1 ? `${ratio.toPrecision(2)} times fewer than` : `${(1 / ratio).toPrecision(2)} times as many as`;
    const said = `${s.model}, every linear layer of the blocks: LoRA of rank ${group(s.lora)} trains ${words(f.LoRA.trained)} numbers, a file of ${size(4 * f.LoRA.trained)}. ` +
      `VeRA of rank ${group(s.vera)} trains ${words(f.VeRA.trained)}, ${few} LoRA. NOLA trains ${words(f.NOLA.trained)} and draws ${words(f.NOLA.random)} in a step; ` +
      `PRANC trains ${words(f.PRANC.trained)} and draws ${words(f.PRANC.random)}.`;
    ui.say(said);
    svg.setAttribute("aria-label", `Bars on a logarithmic scale. ${said}`);
  }
  ui.start();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
