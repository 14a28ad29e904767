import { type ReactNode, useId } from "react";

interface Props<T extends string> {
  /** For a screen reader: what is chosen. */
  label: string;
  options: readonly { value: T; text: ReactNode }[];
  /** One that is no option leaves all of them open. */
  value: T | null;
  onChange: (value: T) => void;
  "aria-describedby"?: string;
}

/** A choice of one of a few words that are all seen. */
export function Segments<T extends string>({ label, options, value, onChange, ...rest }: Props<T>) {
  const name = useId();
  return (
    <div className="segments" role="radiogroup" aria-label={label} {...rest}>
      {options.map((option) => (
        <label key={option.value}>
          <input
            type="radio"
            name={name}
            value={option.value}
            checked={option.value === value}
            onChange={() => onChange(option.value)}
          />
          <span>{option.text}</span>
        </label>
      ))}
    </div>
  );
}
