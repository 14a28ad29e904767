import { useState } from "react";

import { machine } from "../../api/live";
import { useValue } from "../../api/value";
import { Brand } from "../../parts/Brand";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { ROUTES, type Route } from "../routes";
import { href, usePlace } from "../router";
import { type Theme, theme } from "../settings";
import { Icon, type IconName } from "./Icon";

const THEMES: { value: Theme; label: string; icon: IconName }[] = [
  { value: "system", label: "Colours of the system", icon: "system" },
  { value: "light", label: "Light", icon: "light" },
  { value: "dark", label: "Dark", icon: "dark" },
];

export function Nav({ onHelp }: { onHelp: () => void }) {
  const [showsMore, setShowsMore] = useState(false);
  const { parts } = usePlace();
  const here = parts[0] ?? "";
  const isBehindMore = ROUTES.some((route) => route.path === here && !route.isMain);
  return (
    <header className="sidebar">
      <Brand />
      <nav aria-label="Views">
        <ul>
          {ROUTES.map((route) => (
            <li key={route.path} className={route.isMain ? "" : "minor"}>
              <NavLink route={route} here={here} />
            </li>
          ))}
          <li className="more">
            <button type="button" className={isBehindMore ? "here" : ""} onClick={() => setShowsMore(true)}>
              <Icon name="more" />
              More
            </button>
          </li>
        </ul>
      </nav>
      <div className="foot">
        <MachineName />
        <ThemeSwitch />
        <Button look="quiet" small aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)" onClick={onHelp}>
          <Icon name="help" />
        </Button>
      </div>
      <Dialog title="More" open={showsMore} onClose={() => setShowsMore(false)}>
        <ul className="more-list" onClick={() => setShowsMore(false)}>
          {ROUTES.filter((route) => !route.isMain).map((route) => (
            <li key={route.path}>
              <NavLink route={route} here={here} />
            </li>
          ))}
        </ul>
        <ThemeSwitch />
      </Dialog>
    </header>
  );
}

function NavLink({ route, here }: { route: Route; here: string }) {
  return (
    <a href={href(route.path ? [route.path] : [])} aria-current={route.path === here ? "page" : undefined}>
      <Icon name={route.icon} />
      {route.title}
    </a>
  );
}

function MachineName() {
  const state = useValue(machine);
  if (!state) return null;
  return (
    <p className="machine-name" title={state.folder}>
      {state.name}
      <span>Tunesmith {state.version}</span>
    </p>
  );
}

function ThemeSwitch() {
  const now = useValue(theme);
  return (
    <div className="themes" role="group" aria-label="Colours">
      {THEMES.map(({ value, label, icon }) => (
        <Button
          key={value}
          look="quiet"
          small
          aria-label={label}
          title={label}
          aria-pressed={value === now}
          onClick={() => theme.set(value)}
        >
          <Icon name={icon} />
        </Button>
      ))}
    </div>
  );
}
