// The rules of a page that its own layout shows; check_site.py calls hraRules(chapter)
// at every width. Each finding is a sentence. What is folded away is opened first.
window.hraRules = (chapter) => {
  const COLUMNS = 88, SMALLEST = 0.6;
  const found = [];
  const article = document.querySelector("main article");
  const all = (css) => [...article.querySelectorAll(css)];
  const at = `at ${innerWidth} px`;
  const short = (text) => text.trim().replace(/\s+/g, " ").slice(0, 60);
  const widest = (e) => e.textContent.split("\n")
    .reduce((a, b) => ([...b].length > [...a].length ? b : a));
  const columns = (e) => [...widest(e)].length;
  const box = (e) => e.getBoundingClientRect();

  all("details").forEach((d) => { d.open = true; });
  all(".toggle-hidden").forEach((d) => d.classList.remove("toggle-hidden"));

  // code
  for (const pre of all("div.highlight pre")) {
    if (pre.closest(".cell_output")) continue;
    if (columns(pre) > COLUMNS)
      found.push(`a line of code of ${columns(pre)} columns: ${short(widest(pre))}`);
    else if (innerWidth >= 1440 && pre.scrollWidth > pre.clientWidth + 1)
      found.push(`code is cut ${at}: ${short(widest(pre))}`);
  }

  // results: printed text fits; what is wider scrolls in a frame that shows it
  for (const pre of all("div.cell_output pre")) {
    if (pre.scrollWidth > pre.clientWidth + 1)
      found.push(`a printed result of ${columns(pre)} columns is cut ${at}: ` +
        short(widest(pre)));
  }
  for (const e of all("table, figure, img, svg, canvas, div.math")) {
    if (e.closest("mjx-container") || !box(e).width) continue;
    for (let a = e.parentElement; a !== article; a = a.parentElement) {
      const how = getComputedStyle(a).overflowX;
      if (how === "auto" || how === "scroll") break;
      if ((how === "hidden" || how === "clip") && box(e).right > box(a).right + 1) {
        found.push(`a ${e.localName} is cut ${at}: ${short(e.textContent)}`);
        break;
      }
    }
  }

  // equations: in the line or on their own they shrink to the column, not too far
  for (const svg of all("mjx-container > svg")) {
    const column = svg.closest("div.math, p, li, td, th, dd, .admonition-title, h1, h2");
    if (!column || !box(svg).width) continue;
    const name = short(svg.parentElement.textContent) || column.id;
    const share = box(svg).width / svg.width.baseVal.value;
    if (box(svg).right > box(column).right + 2 || box(svg).left < box(column).left - 2)
      found.push(`an equation is cut ${at}: ${name}`);
    else if (share < SMALLEST)
      found.push(`an equation shrinks to ${Math.round(100 * share)} % ${at}: ${name}`);
    const number = column.querySelector(":scope > span.eqno");
    if (number && box(number).left < box(svg).right && box(number).top < box(svg).bottom
        && box(number).bottom > box(svg).top)
      found.push(`an equation meets its number ${at}: ${name}`);
  }

  // figures
  let count = 0;
  for (const e of all("img, svg, canvas")) {
    if (e.closest("mjx-container, [aria-hidden=true], button, summary")) continue;
    if (e.parentElement.closest("svg") || !box(e).width) continue;
    const by = document.getElementById(e.getAttribute("aria-labelledby") || "");
    const alt = e.getAttribute("alt") || e.getAttribute("aria-label") ||
      by?.textContent || e.querySelector(":scope > title")?.textContent || "";
    const frame = e.closest("figure, .hra-widget");
    const caption = frame?.querySelector("figcaption");
    const name = short(alt || e.id || `${e.localName} ${count}`);
    if (!e.dataset.paper) e.dataset.hraPicture = name;  // paper: its ground is shown too
    count += 1;
    if (!alt.trim()) found.push(`a figure without alternative text: ${name}`);
    if (!caption?.textContent.trim()) found.push(`a figure without a caption: ${name}`);
    if (getComputedStyle(e).filter !== "none") found.push(`a figure is dimmed: ${name}`);
  }

  // numbers
  const of = chapter === null ? "\\d+" : `${chapter}\\.\\d+`;
  const numbered = (e, number, what) => {
    if (!new RegExp(`(^|[ (])${of}\\)?$`).test((number?.textContent || "").trim()))
      found.push(`${what} without its number: ${short(e.textContent)}`);
  };
  const title = ":scope > .admonition-title .caption-number";
  for (const e of all("div.proof, div.exercise")) {
    const kind = [...e.classList].filter((c) => !["proof", "admonition"].includes(c))[0];
    const a = /^[aeo]/.test(kind) ? "an" : "a";
    if (kind) numbered(e, e.querySelector(title), `${a} ${kind}`);
  }
  for (const e of all("figcaption")) {
    if (!e.closest(".hra-widget"))
      numbered(e, e.querySelector(".caption-number"), "a figure");
  }
  for (const e of all("div.math span.eqno")) {
    const number = e.cloneNode(true);
    number.querySelectorAll("a").forEach((a) => a.remove());
    numbered(e.parentElement, number, "an equation");
  }
  const heading = article.querySelector("h1");
  if (chapter !== null && !heading.textContent.startsWith(`${chapter}. `))
    found.push(`a chapter without its number: ${short(heading.textContent)}`);
  return found;
};
