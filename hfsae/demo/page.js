// The link in the address bar follows what is shown; the theme is the visitor's.
window.hfsae = {
  opened: false,
  link(query) {
    const now = new URLSearchParams(location.search);
    const theme = now.get("__theme");
    const next = "?" + query + (theme ? "&__theme=" + encodeURIComponent(theme) : "");
    if (!query || next === location.search) return;
    if (this.opened) history.pushState(null, "", next);
    else history.replaceState(null, "", next);
    this.opened = true;
  },
  theme() {
    const dark = document.body.classList.toggle("dark");
    try { localStorage.setItem("hfsae-theme", dark ? "dark" : "light"); } catch (error) { /* private mode */ }
  },
};
window.addEventListener("popstate", () => location.reload());
window.addEventListener("DOMContentLoaded", () => {
  let theme = null;
  try { theme = localStorage.getItem("hfsae-theme"); } catch (error) { /* private mode */ }
  if (theme && !new URLSearchParams(location.search).has("__theme"))
    document.body.classList.toggle("dark", theme === "dark");
});
