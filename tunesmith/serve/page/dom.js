// Small helpers for making nodes of the page.

/** An element with its properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function button(text, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, text);
}

export function copyButton(text, label) {
  const copy = button("Copy", async () => {
    copy.textContent = await copied(text()) ? "Copied" : "Not copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  }, { ariaLabel: label });
  return copy;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text); // browsers offer it to pages from this machine or over https only
    return true;
  } catch {
    return false;
  }
}
