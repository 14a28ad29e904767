import { createRoot } from "react-dom/client";

import { Brand } from "../parts/Brand";
import "../styles/index.css";

createRoot(document.getElementById("root")!).render(
  <main>
    <Brand />
  </main>,
);
