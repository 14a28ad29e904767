/** The name of the program, and its sign. */
export function Brand() {
  return (
    <h1 className="brand">
      <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
        <rect width="32" height="32" rx="9" />
        <path d="M9 20v-8M16 24V8M23 20v-8" />
      </svg>
      Tunesmith
    </h1>
  );
}
