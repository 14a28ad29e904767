import { useEffect, useRef } from "react";

import { locked } from "../api/http";
import { useValue } from "../api/value";
import { ROUTES } from "./routes";
import { usePlace } from "./router";
import { Banner } from "./shell/Banner";
import { useDocumentTitle } from "./shell/documentTitle";
import { ErrorBoundary } from "./shell/ErrorBoundary";
import { Nav } from "./shell/Nav";
import { ShortcutsHelp, useShortcuts } from "./shell/Shortcuts";
import { focusTitle } from "./shell/titleFocus";
import { Toasts } from "./shell/Toasts";
import { Unlock } from "./shell/Unlock";
import { View } from "./shell/View";

export function App() {
  const isLocked = useValue(locked);
  const shortcuts = useShortcuts();
  const { parts } = usePlace();
  useDocumentTitle();

  if (isLocked) return <Unlock />;
  return (
    <div className="shell">
      <a
        className="skip"
        href="#title"
        onClick={(event) => {
          event.preventDefault();
          focusTitle();
        }}
      >
        Skip to the content
      </a>
      <Nav onHelp={shortcuts.show} />
      {/* The class is the root of the view's style sheet. */}
      <main id="content" className={`view-${parts[0] ?? "home"}`}>
        <Banner />
        <Content />
      </main>
      <Toasts />
      <ShortcutsHelp open={shortcuts.open} onClose={shortcuts.hide} />
    </div>
  );
}

function Content() {
  const { parts } = usePlace();
  const [path = "", id] = parts;
  const route = ROUTES.find((one) => one.path === path);
  const address = parts.join("/");
  const before = useRef(address);

  useEffect(() => {
    if (before.current === address) return;
    before.current = address;
    scrollTo(0, 0);
    focusTitle();
  }, [address]);

  return <ErrorBoundary key={address}>{shown()}</ErrorBoundary>;

  function shown() {
    if (route && id !== undefined && route.one) return <route.one key={id} id={id} />;
    if (route) return <route.view />;
    return (
      <View title="Not found">
        <p className="note">There is no view at this address.</p>
      </View>
    );
  }
}
