// The token that the studio asks for. It comes once in the address that `tunesmith studio` prints.

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
