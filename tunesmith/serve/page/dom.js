// Small helpers for making nodes of the page.

/** An element with its properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Gives a node these children. Those that stay in place are not touched, so they are not laid out again. */
export function fill(parent, children) {
  children.forEach((child, at) => {
    if (parent.childNodes[at] !== child) parent.insertBefore(child, parent.childNodes[at] ?? null);
  });
  while (parent.childNodes.length > children.length) parent.lastChild.remove();
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
