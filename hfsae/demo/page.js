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
    try { localStorage.setItem("hfsae-theme", dark ? "dark" : "light"); } catch (error) { /* private mode */ }
  },
};
window.addEventListener("popstate", () => location.reload());
window.addEventListener("DOMContentLoaded", () => hfsae.remembered());
