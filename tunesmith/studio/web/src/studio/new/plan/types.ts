// The JSON of `tunesmith plan --json`, as far as the page shows it.

export interface Need {
  place: { name: string; free_bytes: number; kind: string };
  kept_layers: number | null;
  /** Bytes. */
  parts: Record<string, number>;
  stage: string;
  needed_bytes: number;
  limit_bytes: number;
  fits: boolean;
}

export interface Alternative {
  change: string;
  tokens_per_second: number | null;
  needed_bytes: number | null;
  quality: string;
}

export interface Prediction {
  plan: Record<string, unknown> & { reasons: Record<string, string> };
  needs: Need[] | null;
  not_predicted: string;
  host_bytes: number;
  speed: {
    tokens: number;
    step_seconds: number;
    tokens_per_second: number;
    bound: string;
    lanes: { tokens: number }[];
    watts: number | null;
  } | null;
  rates_from: string;
  training: { steps: number; tokens: number; is_estimate: boolean } | null;
  no_training: string;
  not_beside: string;
  disk: {
    checkpoints: number;
    needed_bytes: number;
    left_bytes: number;
    free_bytes: number | null;
    fits: boolean | null;
  } | null;
  cost: { parts: Record<string, number>; kwh: number | null; price: number | null; seconds: number } | null;
  left_out: Record<string, string>;
  alternatives: Alternative[];
  remedies: Alternative[];
  fits: boolean | null;
  /** Why it does not fit; empty if it does. */
  refusal: string;
}
