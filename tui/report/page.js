(() => {
  const tip = document.getElementById("tip");
  let owner = null;
  const hide = () => {
    if (owner) owner.removeAttribute("aria-describedby");
    owner = null;
    tip.hidden = true;
  };
  const show = (target) => {
    const found = target.closest && target.closest("[data-tip], .mark[tabindex]");
    if (!found) return hide();
    if (found === owner) return;
    hide();
    owner = found;
    tip.textContent = found.dataset.tip || found.getAttribute("aria-label");
    tip.hidden = false;
    found.setAttribute("aria-describedby", "tip");
    const at = found.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const left = Math.max(8, Math.min(at.left, room));
    const above = at.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
  };
  document.addEventListener("mouseover", (event) => show(event.target));
  document.addEventListener("focusin", (event) => show(event.target));
  document.addEventListener("focusout", hide);
  document.addEventListener("click", (event) => show(event.target));
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", hide, { capture: true, passive: true });
  for (const code of document.querySelectorAll("pre.command > code")) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "copy", textContent: "copy" });
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(code);  // what stays where nothing may be copied
      const copied = await navigator.clipboard.writeText(code.textContent)
        .then(() => true, () => document.execCommand("copy"))
        .catch(() => false);
      button.textContent = copied ? "copied" : "press Ctrl+C";
    });
    code.parentElement.before(button);
  }
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const set = root.dataset.theme;
    const dark = set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
})();
