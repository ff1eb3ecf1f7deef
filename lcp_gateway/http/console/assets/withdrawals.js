// Withdrawals of the wallet; nothing where the gateway has none.
export function Withdrawals() {
  return null;
}
