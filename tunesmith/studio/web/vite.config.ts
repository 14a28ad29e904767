// Builds the pages into ../static, which is committed. `make page` writes it, tests/studio/test_build.py compares it.

import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./", // relative paths, so that a page also works behind a prefix
  plugins: [react()],
  build: {
    outDir: process.env.TUNESMITH_STATIC ?? "../static",
    emptyOutDir: true,
    target: ["chrome123", "firefox120", "safari17.5"], // the first with light-dark() in CSS
    assetsInlineLimit: 0, // the Content-Security-Policy refuses data: addresses
    modulePreload: { polyfill: false },
    license: { fileName: "THIRD-PARTY-LICENSES.txt" },
    reportCompressedSize: false,
    rolldownOptions: {
      input: ["index.html", "chat.html"],
      output: { codeSplitting: { groups: [{ name: "libraries", test: /node_modules/ }] } },
    },
  },
});
