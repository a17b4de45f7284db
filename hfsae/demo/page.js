// The link in the address bar follows what is shown; the theme is the visitor's.
window.hfsae = {
  opened: false,
  // Only of the page that is selected: an answer about another one, or the first, may come late.
  early: "", // a link whose page was not selected
  waits: {}, // timers, by the page of a link
  link(query, patience = 40) {
    const to = new URLSearchParams(query).get("tab");
    clearTimeout(this.waits[to]);
    const tab = document.querySelector("[role=tab][aria-selected=true]")?.id;
    if (tab === `tab-${to}-button`) this.put(query);
    else if (patience) this.waits[to] = setTimeout(() => this.link(query, patience - 1), 50);
    else this.early = query;
  },
  // Gradio's update of the tabs, where the last click leads; none once somebody clicked elsewhere.
  lead(text) {
    const [click, selected] = text.split(" ");
    if (Number(click) >= this.clicks) return {__type__: "update", selected};
  },
  put(query) {
    this.early = "";
    const now = new URLSearchParams(location.search);
    const theme = now.get("__theme");
    const asTheme = theme ? "&__theme=" + encodeURIComponent(theme) : "";
    // a page that was led to is selected after that, and does not know that its texts were requested
    if ("?" + query + "&run=1" + asTheme === location.search) query += "&run=1";
    const next = "?" + query + asTheme;
    if (!this.opened) this.remembered(); // Gradio has set its own theme by now
    const step = this.opened && this.content(next) !== this.content(location.search);
    const to = new URLSearchParams(query).get("tab");
    if (this.opened) this.follow(to, to !== now.get("tab"));
    if (next !== location.search) history[step ? "pushState" : "replaceState"](null, "", next);
    this.opened = true;
    this.query = query;
    this.step(new URLSearchParams(query));
    this.age();
  },
  // On a phone, and at the end of a long list, what a click leads to may be out of sight.
  clicks: 0, // on what may lead to another page: of quick ones the last is answered
  asked: "", // what the last click in a panel asked for
  results: {inspect: "#inspect-comparison section, #inspect-text", search: "#search-found", picture: "#picture-shown",
            feature: "#feature-tried section, #feature-main", why: "#why-next", graph: "#graph-drawn", compare: "#compare-result"},
  follow(tab, isAnother) {
    const asked = this.asked;
    this.asked = "";
    if (isAnother) this.show("[role=tablist]", 0.6);
    if (isAnother) setTimeout(() => this.arrive(), 100); // once its page is hidden
    if (asked === "steer" && tab === "steer") this.show("#steer-chips", 0.6);
    else if (asked === "token") this.show("#inspect-latents", 0.8);
    else if (!isAnother || asked === "tour") this.show(this.results[tab], 0.7);
  },
  // Scrolls if a part begins above the screen, or further down than this share of it.
  show(selector, share) {
    if (!selector) return;
    setTimeout(() => {
      const part = document.querySelector(selector);
      const {top, height} = part?.getBoundingClientRect() ?? {height: 0};
      if (height && (top < 0 || top > share * innerHeight)) part.scrollIntoView({block: "start"});
    }, 100); // once the panels are drawn
  },
  // A step of the tour is done when its page is shown: a token chosen, a latent, a steered text.
  step(shown) {
    const done = {inspect: shown.has("token"), feature: true, steer: shown.has("run")};
    const tab = shown.get("tab");
    if (done[tab]) document.querySelector(`#tour [data-step=${tab}]`)?.classList.add("hf-done");
  },
  tour() {
    const hidden = document.documentElement.classList.toggle("hf-toured");
    try { sessionStorage.setItem("hfsae-tour", hidden ? "hidden" : "shown"); } catch (error) { /* private mode */ }
    document.querySelector(hidden ? "#header [data-local=tour]" : "#tour button").focus();
  },
  // Texts that were written with other settings than those of the link say so.
  query: "", // the link's
  age() {
    const now = this.query.replace("&run=1", ""), texts = document.querySelector("#steer-output");
    const of = texts?.querySelector("[data-of]")?.dataset.of;
    texts?.classList.toggle("hf-stale", now.startsWith("tab=steer") && of !== undefined && of !== now);
  },
  // The link, to send to somebody, with a note on where it opens.
  async copy(button) {
    const own = button.dataset.link;
    await this.take(button, own ? location.origin + location.pathname + "?" + own : location.href, "Link copied");
    const note = button.parentElement.querySelector(".hf-copied");
    note.textContent = this.reach(location.hostname);
    setTimeout(() => { note.textContent = ""; }, 10000);
  },
  copyCode(button) {
    this.take(button, button.parentElement.querySelector("code").textContent, "copied");
  },
  // A text to the clipboard; a page without https has none of its own.
  async take(button, text, done) {
    const name = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) {
      const box = document.body.appendChild(document.createElement("textarea"));
      box.value = text;
      box.select();
      document.execCommand("copy");
      box.remove();
      button.focus();
    }
    button.textContent = done;
    setTimeout(() => { button.textContent = name; }, 2000);
  },
  // Where a link to this app opens.
  reach(host) {
    const isHere = /^(localhost|127\.[\d.]+|\[::1\])$/.test(host);
    const where = isHere ? "on this machine only" : `wherever ${host} can be reached`;
    return `It opens ${where}, while this app runs.`;
  },
  // The latent so many further, from the one in the box; from the one shown, if that holds a word.
  // Quick clicks count on: the box has not yet followed the one before.
  counted: {from: null, to: 0, at: 0},
  count(latent, by, n) {
    const shown = document.querySelector("#feature-main [data-latent]")?.dataset.latent ?? -by;
    const {from, to, at} = this.counted, now = performance.now();
    const isQuick = from === latent && now - at < 1000;
    const start = isQuick ? to : Number(/^\d+$/.test(latent) ? latent : shown);
    this.counted = {from: latent, to: (start + by + n) % n, at: now};
    return String(this.counted.to);
  },
  // Called with a panel when something new was put into it; `onDrawn` has what to do then.
  onDrawn: [],
  drawn(panel) {
    for (const then of this.onDrawn) then(panel);
  },
  // A link without what is set beside the text: to move a slider is no step to go back over.
  content(query) {
    const kept = new URLSearchParams(query);
    for (const name of ["mode", "unit", "scope", "error_term", "chat", "temperature",
                        "max_new_tokens", "repetition_penalty", "seed"]) kept.delete(name);
    return kept.toString();
  },
  remembered() {
    let theme = null;
    try { theme = localStorage.getItem("hfsae-theme"); } catch (error) { /* private mode */ }
    if (theme && !new URLSearchParams(location.search).has("__theme"))
      document.body.classList.toggle("dark", theme === "dark");
  },
  theme() {
    const dark = document.body.classList.toggle("dark");
    window.dispatchEvent(new Event("hfsae-theme"));
    try { localStorage.setItem("hfsae-theme", dark ? "dark" : "light"); } catch (error) { /* private mode */ }
  },
};
// The tour is for the first visit, which lasts as long as its tab; after that its button shows it.
try {
  const isFirst = !localStorage.getItem("hfsae-tour");
  const tour = sessionStorage.getItem("hfsae-tour") ?? (isFirst ? "shown" : "hidden");
  sessionStorage.setItem("hfsae-tour", tour);
  localStorage.setItem("hfsae-tour", "seen");
  document.documentElement.classList.toggle("hf-toured", tour === "hidden");
} catch (error) { /* private mode */ }
// On a phone all examples at once would be a dozen screens: they begin folded.
hfsae.onDrawn.push((panel) => {
  for (const part of panel.querySelectorAll("details[data-fold='']:not(.hf-folded)")) {
    part.classList.add("hf-folded");
    if (window.innerWidth <= 700) part.open = false;
  }
});
// What is wider than its room is reached by keyboard, and scrolled there.
const wide = new ResizeObserver((entries) => {
  for (const {target} of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
hfsae.onDrawn.push((panel) => {
  const parts = panel.querySelectorAll(".hf-wide, .hf-top dl, .hf-card pre, .hf-card table");
  for (const part of parts) wide.observe(part);
});
// A text that begins is brought into sight, once, and so is a picture of one.
hfsae.onDrawn.push((panel) => {
  const id = panel.closest(".block")?.id, writes = panel.querySelector(".hf-caret") !== null;
  const {top, bottom} = panel.getBoundingClientRect();
  const isHidden = top > 0.7 * innerHeight || bottom < 0;
  if (id === "steer-output" && isHidden && (hfsae.awaited || (writes && !hfsae.writes)))
    hfsae.show("#steer-output", 0);
  if (id === "steer-output") Object.assign(hfsae, {writes, awaited: false});
  if (id === "steer-share" && panel.querySelector("img")) hfsae.show("#steer-share", 0.5);
});
// The picture to share is drawn by the browser: what is downloaded is a PNG.
hfsae.onDrawn.push(async (panel) => {
  const image = panel.querySelector(".hf-shared img"), link = panel.querySelector("[data-png]:not([href])");
  if (!link) return;
  try {
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: 1200, height: 630});
    canvas.getContext("2d").drawImage(image, 0, 0, 1200, 630);
    link.href = canvas.toDataURL("image/png");
  } catch (error) { // a browser that gives no such canvas away: the SVG itself
    Object.assign(link, {href: image.src, download: link.download.replace(".png", ".svg")});
  }
});
// So are those of another preset, whatever is being written.
document.addEventListener("click", ({target}) => {
  if (target.closest?.("#steer-examples [data-do=example], #steer-run")) hfsae.awaited = true;
});
// Who opens a page has it: what was clicked before leads nowhere any more.
document.addEventListener("click", ({target}) => {
  if (!target.closest?.("[role=tab]")) return;
  hfsae.clicks++;
  if (hfsae.early) hfsae.link(hfsae.early);
});
// The tour goes on with the latent that the page Inspect shows first.
hfsae.onDrawn.push((panel) => {
  const first = panel.closest(".block")?.id === "inspect-latents" && panel.querySelector("[data-do=open]");
  const step = document.querySelector("#tour [data-step=feature] button");
  if (first && step) step.dataset.to = first.dataset.at;
});
// A search for a strength that begins is brought into sight.
hfsae.onDrawn.push((panel) => {
  const block = panel.closest("#steer-trying");
  let tries = false;
  const watch = () => {
    const now = block.querySelector(".wrap:not(.hide)") !== null;
    if (now && !tries) hfsae.show("#steer-trying", 0.8);
    tries = now;
  };
  if (block) new MutationObserver(watch).observe(block, {subtree: true, childList: true, attributeFilter: ["class"]});
});
// A box that a page opens with something in is replaced by what is typed.
document.addEventListener("focusin", ({target}) => {
  if (target.closest?.(".hf-whole") && target.value) target.select();
});
hfsae.onDrawn.push((panel) => { if (panel.closest(".block")?.id === "steer-output") hfsae.age(); });
window.addEventListener("popstate", () => location.reload());
window.addEventListener("DOMContentLoaded", () => hfsae.remembered());
