// The rank slider; its sums run in the browser. `base` is base.js, which hra.viz.static puts before this file.
const { make, size } = base;
let serial = 0;

function facts(sigma, shape, r) {
  let kept = 0, all = 0;
  sigma.forEach((s, i) => { all += s * s; if (i < r) kept += s * s; });
  return { energy: all ? kept / all : 1, bytes: 4 * r * (shape[0] + shape[1]), dense: 4 * shape[0] * shape[1] };
}


function render({ model, el }) {
  const sigma = model.get("sigma"), shape = model.get("shape"), id = `hra-rank-${++serial}`, n = sigma.length;
  const W = 480, H = 220, L = 58, R = 10, T = 10, B = 42;
  const positive = sigma.filter((s) => s > 0);
  const top = Math.log10(positive[0] || 1), low = Math.min(top - 1, Math.max(top - 4, Math.log10(positive[positive.length - 1] || 0.1)));
  const x = (i) => L + (W - L - R) * (n > 1 ? i / (n - 1) : 0);
  const y = (s) => T + (H - T - B) * (1 - (Math.max(Math.log10(s || 1e-30), low) - low) / (top - low));
  const input = make("input", { type: "range", id, min: 0, max: n, step: 1, value: model.get("r"),
    "data-lm-suppress-shortcuts": "true", style: "width:min(100%,24rem);accent-color:#2a78d6" });
  const out = make("output", { for: id });
  const status = make("p", { role: "status", "aria-live": "polite" });
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", style: "width:100%;max-width:34rem;display:block" });
  const line = (to) => "M" + sigma.slice(0, to).map((s, i) => `${x(i).toFixed(1)},${y(s).toFixed(1)}`).join("L");
  const text = (px, py, s, extra = {}) => make("text", { x: px, y: py, fill: "currentColor", "font-size": 13, ...extra }, s);
  svg.append(make("path", { d: `M${L},${T}V${H - B}H${W - R}`, fill: "none", stroke: "currentColor", "stroke-opacity": 0.5 }),
    make("path", { d: line(n), fill: "none", stroke: "currentColor", "stroke-opacity": 0.45, "stroke-width": 2 }));
  const kept = make("path", { fill: "none", stroke: "#2a78d6", "stroke-width": 4 });
  const cut = make("line", { y1: T, y2: H - B, stroke: "#d1661f", "stroke-width": 2, "stroke-dasharray": "5 3" });
  svg.append(kept, cut, text(L, H - 24, "1"), text(W - R, H - 24, String(n), { "text-anchor": "end" }),
    text((L + W) / 2, H - 6, "index i of the singular value", { "text-anchor": "middle" }),
    text(L - 6, T + 10, (10 ** top).toPrecision(2), { "text-anchor": "end" }),
    text(L - 6, H - B, (10 ** low).toPrecision(2), { "text-anchor": "end" }), text(L + 6, T + 12, "σᵢ (log scale)"));
  function draw() {
    const r = model.get("r"), f = facts(sigma, shape, r);
    kept.setAttribute("d", r ? line(r) : `M${L},${T}`);
    const at = x(Math.max(0, r - 0.5));
    cut.setAttribute("x1", at); cut.setAttribute("x2", at);
    input.value = r; out.textContent = r;
    status.textContent = `Rank ${r} of ${n} keeps ${(100 * f.energy).toFixed(1)} % of the energy of ${model.get("name")} in ` +
      `${size(f.bytes)} (fp32); the dense matrix takes ${size(f.dense)}.`;
    svg.setAttribute("aria-label", `Singular values on a logarithmic scale. ${status.textContent}`);
  }
  input.addEventListener("input", () => { model.set("r", +input.value); model.save_changes(); });
  model.on("change:r", draw);
  el.append(make("div", {}, make("label", { for: id }, "Rank kept:"), " ", out), input, status, svg);
  draw();
}

export default { render, facts };  // facts: so that a test holds it equal to the library
