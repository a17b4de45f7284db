// The link in the address bar follows what is shown; the theme is the visitor's.
window.hfsae = {
  opened: false,
  link(query) {
    const now = new URLSearchParams(location.search);
    const theme = now.get("__theme");
    const next = "?" + query + (theme ? "&__theme=" + encodeURIComponent(theme) : "");
    if (!query) return;
    if (!this.opened) this.remembered(); // Gradio has set its own theme by now
    const step = this.opened && this.content(next) !== this.content(location.search);
    if (next !== location.search) history[step ? "pushState" : "replaceState"](null, "", next);
    this.opened = true;
    this.step(new URLSearchParams(query));
  },
  // A step of the tour is done when its page is shown: a token chosen, a latent, a steered text.
  step(shown) {
    const done = {inspect: shown.has("token"), feature: true, steer: shown.has("run")};
    const tab = shown.get("tab");
    if (done[tab]) document.querySelector(`#tour [data-step=${tab}]`)?.classList.add("hf-done");
  },
  tour() {
    const hidden = document.documentElement.classList.toggle("hf-toured");
    try { localStorage.setItem("hfsae-tour", hidden ? "hidden" : "shown"); } catch (error) { /* private mode */ }
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
try {
  if (localStorage.getItem("hfsae-tour") === "hidden") document.documentElement.classList.add("hf-toured");
} catch (error) { /* private mode */ }
// On a phone all examples at once would be a dozen screens: they begin folded.
hfsae.onDrawn.push((panel) => {
  for (const part of panel.querySelectorAll("details[data-fold='']:not(.hf-folded)")) {
    part.classList.add("hf-folded");
    if (window.innerWidth <= 700) part.open = false;
  }
});
window.addEventListener("popstate", () => location.reload());
window.addEventListener("DOMContentLoaded", () => hfsae.remembered());
