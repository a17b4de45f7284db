// Who goes by keyboard keeps their place where what had the focus is gone, or its page is hidden.
(() => {
  const CAN = "button:not(:disabled), input, summary, a[href], [tabindex='0']";
  const targets = (block) => [...block.querySelectorAll(CAN)].filter((node) => node.checkVisibility());
  let block = null, place = 0; // the block that had the focus last, and which of its targets
  document.addEventListener("focusin", ({target}) => {
    block = target.closest(".block");
    place = block ? targets(block).indexOf(target) : 0;
  });
  const focus = (node) => {
    const takes = node.matches(CAN);
    if (!takes) node.tabIndex = -1;
    node.focus({preventScroll: !takes});
  };
  const isLost = () => document.activeElement === document.body || !document.activeElement.checkVisibility();
  // What was drawn anew gives the focus to what took its place, or else to the whole panel.
  hfsae.onDrawn.push((panel) => {
    if (!block || panel.closest(".block") !== block || !isLost() || !block.checkVisibility()) return;
    const there = targets(block);
    focus(there[Math.min(Math.max(place, 0), there.length - 1)] ?? panel);
  });
  // A page that is shown in the place of another one takes its focus.
  hfsae.arrive = () => {
    const page = [...document.querySelectorAll("[role=tabpanel]")].find((one) => one.checkVisibility());
    if (page && isLost()) focus(page);
  };
  // A value that arrow keys change step by step is sent once it stands still, or is left.
  let key = "", timer = null, act = null;
  const now = () => {
    clearTimeout(timer);
    const due = act;
    act = null;
    due?.();
  };
  hfsae.settle = (then) => {
    act = then;
    clearTimeout(timer);
    if (key.startsWith("Arrow") || key.startsWith("Page")) timer = setTimeout(now, 400);
    else now();
  };
  document.addEventListener("focusout", now);
  document.addEventListener("pointerdown", () => { key = ""; }, true);
  document.addEventListener("keydown", (event) => {
    const {target} = event, role = target.getAttribute?.("role");
    key = event.key;
    if (key === "Escape") document.querySelector("[aria-modal=true] > .backdrop")?.click();
    if (role === "tab" || target.type === "radio") turn(event);
    if (role !== "combobox") return;
    if (key === "Tab" || key === "Shift") event.stopPropagation(); // Gradio would open its list again
    if (key === "Enter") setTimeout(() => back(target), 50); // Gradio takes its focus away
  }, true);
  const back = (box) => {
    if (document.activeElement !== document.body) return;
    box.focus();
    box.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true})); // closed
  };
  // Arrows lead from tab to tab, and from choice to choice: Gradio's know Tab alone.
  const turn = (event) => {
    const {key, target} = event, isTab = target.type !== "radio";
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[key];
    if (!by || (isTab && !/Left|Right/.test(key))) return;
    event.preventDefault();
    const [group, kind] = isTab ? ["[role=tablist]", "[role=tab]"] : [".block", "[type=radio]"];
    const all = [...target.closest(group).querySelectorAll(kind)];
    const next = all.at((all.indexOf(target) + by) % all.length);
    next.focus();
    if (!isTab) next.click();
  };
})();
