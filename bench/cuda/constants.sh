# Sourced: read_constants KEY=VALUE ... -D...: what is not in `value` (an associative array of defaults) goes to the array `others`;
# `definitions` has every constant of kernels/config.cuh.
read_constants() {
  others=() definitions=()
  local argument key
  for argument in "$@"; do
    key=${argument%%=*}
    if [[ -n ${value[$key]-} ]]; then value[$key]=${argument#*=}; else others+=("$argument"); fi
  done
  for key in "${!value[@]}"; do definitions+=("-DCHORALE_$key=${value[$key]}"); done
}
