import { createRoot } from "react-dom/client";

import { startLive } from "../api/live";
import { takeToken } from "../api/token";
import "../styles/index.css";
import { App } from "./App";
import { followNotifications } from "./notifications";
import { followTheme } from "./settings";
import "./studio.css";

takeToken();
followTheme();
startLive();
followNotifications();
createRoot(document.getElementById("root")!).render(<App />);
