// On a page without a kernel: the few lines of anywidget's model that a widget needs.
// hra.viz.static puts KEY and `widget` before this.
for (const host of document.querySelectorAll(`[data-hra="${KEY}"]:not([data-ready])`)) {
  host.dataset.ready = "1";
  const state = JSON.parse(host.querySelector("script[type='application/json']").textContent);
  const on = {};
  const model = {
    get: (k) => state[k],
    set(k, v) {
      if (state[k] === v) return;
      state[k] = v;
      (on[`change:${k}`] || []).forEach((f) => f());
    },
    save_changes() {}, send() {},
    on(e, f) { (on[e] = on[e] || []).push(f); },
    off(e, f) { on[e] = (on[e] || []).filter((g) => g !== f); },
  };
  const el = document.createElement("div");
  try {
    await widget.render({ model, el });
    host.replaceChildren(el);
  } catch (err) { console.error("hra widget: keeping the fallback image", err); }
}
