// The token that the studio asks for. It comes once in the address that `tunesmith studio` prints.
//
// It is in localStorage, so that a new tab, or the browser after it was closed, need not ask for it. What a script in the
// page can read, it can read in sessionStorage too, and a token is worth nothing once its studio has ended: each start
// makes another. To keep it in sessionStorage and hand it from tab to tab would not reach a new tab whose others are
// frozen. Only a key of the user's own (--key) outlives the studio: the browser's profile then keeps it.

const KEY = "tunesmith.token";

/** The token of this browser. Another tab may have stored a newer one since. */
export function storedToken(): string {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // the browser keeps nothing
  }
}

export function storeToken(token: string): void {
  try {
    localStorage.setItem(KEY, token.trim());
  } catch {
    // It is then asked for again after a reload.
  }
}

/** Takes the token out of the address, so that it is in no bookmark and no history. */
export function takeToken(): void {
  const found = /^#token=([^&]+)/.exec(location.hash);
  if (!found?.[1]) return;
  storeToken(decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname + location.search);
}

/** Calls back when another tab stores a token. Returns the function that ends that. */
export function onNewToken(callback: () => void): () => void {
  const listener = (event: StorageEvent) => event.key === KEY && callback();
  addEventListener("storage", listener);
  return () => removeEventListener("storage", listener);
}
