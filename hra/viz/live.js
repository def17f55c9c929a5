// The panel that trains: the reader's choices go to the kernel, its curves come back. `base` is base.js.
const { make, frame, short } = base;
const ten = { to: (i) => +(10 ** (i / 10)).toPrecision(3), from: (v) => Math.round(10 * Math.log10(v)) };

function render({ model, el }) {
  const get = (k) => model.get(k), bounds = get("bounds"), sparse = get("method") === "SHiRA";
  const ui = frame({ model, el, keys: [...(sparse ? ["mask", "density"] : ["r"]), "target", "lr"], draw });
  const log = (key, label) => ui.slider(key, label, ...bounds[key].map(ten.from), { ...ten, show: short });
  if (sparse) { ui.choices("mask", "Mask:", get("masks")); log("density", "Density:"); }
  else ui.slider("r", "Rank r:", ...bounds.r);
  ui.choices("target", "Adapters on:", Object.keys(get("targets")));
  log("lr", "Learning rate:");

  const train = ui.button("Train", () => model.send({ do: "train" })), cancel = ui.button("Cancel", () => model.send({ do: "cancel" }));
  const bar = make("progress", { "aria-label": "Steps done", max: get("steps"), style: "flex:1 1 8rem;min-width:4rem" });
  const row = make("div", { class: "hra-buttons" }, train, cancel, bar), curves = make("div", { style: "max-width:36rem" });
  ui.picture.append(row, curves);
  function draw() {
    const running = get("running");
    // not `disabled`, which would take the keyboard's focus away
    train.setAttribute("aria-disabled", String(running));
    cancel.setAttribute("aria-disabled", String(!running));
    for (const b of [train, cancel]) b.style.opacity = b.getAttribute("aria-disabled") === "true" ? 0.5 : 1;
    bar.value = get("step");
    if (curves.dataset.shown !== get("picture")) curves.innerHTML = curves.dataset.shown = get("picture");
    ui.say(get("status"));
  }
  for (const k of ["running", "step", "status", "picture"]) model.on(`change:${k}`, draw);
  ui.start();
}

export default { render, needs_kernel: () => true };
