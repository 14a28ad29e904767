import { type ComponentProps, type ReactNode, useId } from "react";

interface Labelled {
  id: string;
  "aria-describedby": string | undefined;
  "aria-invalid": boolean | undefined;
}

interface Props {
  label: ReactNode;
  hint?: ReactNode;
  error?: ReactNode;
  /** Renders the input, select or textarea with the given attributes. */
  children: (attributes: Labelled) => ReactNode;
}

/** An input with its label above, and a hint or what is wrong below. */
export function Field({ label, hint, error, children }: Props) {
  const id = useId();
  const below = error ?? hint;
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children({
        id,
        "aria-describedby": below ? `${id}-below` : undefined,
        "aria-invalid": error ? true : undefined,
      })}
      {below && (
        <p id={`${id}-below`} className={error ? "error" : "hint"}>
          {below}
        </p>
      )}
    </div>
  );
}

/** A checkbox with its label beside it. */
export function Check({ label, ...rest }: { label: ReactNode } & ComponentProps<"input">) {
  return (
    <label className="check">
      <input type="checkbox" {...rest} />
      <span>{label}</span>
    </label>
  );
}
