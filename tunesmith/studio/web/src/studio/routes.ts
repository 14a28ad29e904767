// All views: one file and one line each. `tests/studio/test_page_shell.py` opens each of them.

import type { ComponentType } from "react";

import type { IconName } from "./shell/Icon";
import { Chat } from "./views/Chat";
import { Compare } from "./views/Compare";
import { Data } from "./views/Data";
import { Export } from "./views/Export";
import { Home } from "./views/Home";
import { Models } from "./views/Models";
import { NewRun } from "./views/NewRun";
import { Run } from "./views/Run";
import { Runs } from "./views/Runs";

export interface Route {
  /** The first part of the address. */
  path: string;
  title: string;
  icon: IconName;
  /** The key that opens it after g. */
  key: string;
  /** Whether it is in the bar of a narrow page, and not behind "More". */
  isMain?: boolean;
  view: ComponentType;
  /** Shown where the address has a second part. */
  one?: ComponentType<{ id: string }>;
}

export const ROUTES: Route[] = [
  { path: "", title: "Home", icon: "home", key: "h", isMain: true, view: Home },
  { path: "data", title: "Data", icon: "data", key: "d", view: Data },
  { path: "new", title: "New run", icon: "plus", key: "n", isMain: true, view: NewRun },
  { path: "runs", title: "Runs", icon: "runs", key: "r", isMain: true, view: Runs, one: Run },
  { path: "compare", title: "Compare", icon: "compare", key: "c", view: Compare },
  { path: "chat", title: "Chat", icon: "chat", key: "t", isMain: true, view: Chat },
  { path: "serve", title: "Export & serve", icon: "serve", key: "e", view: Export },
  { path: "models", title: "Models", icon: "models", key: "m", view: Models },
];
