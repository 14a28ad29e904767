import { createRoot } from "react-dom/client";

import "../styles/index.css";

createRoot(document.getElementById("root")!).render(
  <main>
    <h1>Tunesmith Studio</h1>
  </main>,
);
