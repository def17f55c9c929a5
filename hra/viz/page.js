// In a page: the widget with the live model that a kernel has opened here under the name in data-live (base.enlist), whenever
// that comes; until then, and where there is no kernel, with the few lines of anywidget's model that a widget needs.
// hra.viz.static puts KEY and `widget` before this. A widget with `needs_kernel()` keeps what stands here without one.
for (const host of document.querySelectorAll(`[data-hra="${KEY}"]:not([data-ready])`)) {
  host.dataset.ready = "1";
  const state = JSON.parse(host.querySelector(":scope > script[type='application/json']").textContent);
  const on = {};
  const still = {
    page: true,
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
  const show = async (model) => {
    const el = document.createElement("div");
    try {
      await widget.render({ model, el });
      host.replaceChildren(el);
    } catch (err) { console.error("hra widget: keeping what was there", err); }
  };
  const name = host.dataset.live, live = () => name && globalThis.hraModels?.get(name);
  if (name) document.addEventListener("hra-live", (e) => { if (e.detail === name && live()) show(live()); });
  if (live()) await show(live());
  else if (!widget.needs_kernel?.()) await show(still);
}
