// Paper to draw a digit on, and the files of a page. `base` is base.js, `vit` is vit.js.
const sheet = (() => {
const { make } = base, PIXELS = 280, PEN_WIDTH = 26;

// without a kernel the files stand beside the pages of a site, and nowhere else
const needs_kernel = () => document.documentElement.dataset.content_root === undefined;

// A file's bytes, once a page: a script beside the page, or the kernel
function file(name, model) {
  const held = (globalThis.hraFiles ??= {}), read = (globalThis.hraRead ??= {});
  if (!read[name]) {
    const fail = (why) => { delete read[name]; return new Error(why); };
    read[name] = model.page ? new Promise((resolve, reject) => {
      const script = make("script", { src: `${document.documentElement.dataset.content_root}_static/hra/${name}.js` });
      script.addEventListener("load", () => { resolve(vit.decode(held[name])); delete held[name]; script.remove(); });
      script.addEventListener("error", () => reject(fail(`${script.getAttribute("src")} is not there`)));
      document.head.append(script);
    }) : new Promise((resolve) => {
      const take = (content, buffers) => {
        if (content.file !== name) return;
        model.off("msg:custom", take);
        const b = buffers[0];
        resolve(new Uint8Array(b.buffer ?? b, b.byteOffset ?? 0, b.byteLength));
      };
      model.on("msg:custom", take);
      model.send({ file: name });
    });
  }
  return read[name];
}

function grey(canvas, image) {  // ink from 0 to 1 on a canvas of any size
  const n = vit.SIDE, small = make("canvas", { width: n, height: n }), data = new ImageData(n, n);
  image.forEach((v, i) => data.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i));
  small.getContext("2d").putImageData(data, 0, 0);
  canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
}

// `drawn(image)` is called while the pen moves, once a frame; `show(image)` puts a stored digit there
function sketch(drawn) {
  const paper = make("canvas", { class: "hra-paper", width: PIXELS, height: PIXELS, role: "img", "aria-label": "Paper to draw a digit on, with mouse, pen or finger" });
  let strokes = [], asked = false;
  const wipe = (hint = "") => {
    const c = paper.getContext("2d");
    c.fillStyle = "#000";
    c.fillRect(0, 0, PIXELS, PIXELS);
    Object.assign(c, { fillStyle: "#aaa", font: "18px sans-serif", textAlign: "center" });
    c.fillText(hint, PIXELS / 2, PIXELS / 2);
  };
  const ink = (from, to) => {
    const c = paper.getContext("2d");
    Object.assign(c, { strokeStyle: "#fff", lineWidth: PEN_WIDTH, lineCap: "round" });
    c.beginPath(); c.moveTo(...from); c.lineTo(...to); c.stroke();
  };
  const place = (e) => {
    const box = paper.getBoundingClientRect();
    return [(e.clientX - box.left) * PIXELS / box.width, (e.clientY - box.top) * PIXELS / box.height];
  };
  const soon = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; drawn(vit.raster(strokes)); });
  };
  paper.addEventListener("pointerdown", (e) => {
    e.preventDefault();
    paper.setPointerCapture(e.pointerId);
    if (!strokes.length) wipe();
    strokes.push([place(e)]);
    ink(place(e), place(e));
    soon();
  });
  paper.addEventListener("pointermove", (e) => {
    if (!paper.hasPointerCapture(e.pointerId)) return;
    const stroke = strokes.at(-1), at = place(e);
    ink(stroke.at(-1), at);
    stroke.push(at);
    soon();
  });
  wipe("draw a digit here");
  return { paper,
    clear() { strokes = []; wipe("draw a digit here"); drawn(null); },
    show(image) { strokes = []; grey(paper, image); drawn(image); } };
}

return { needs_kernel, file, grey, sketch };
})();
